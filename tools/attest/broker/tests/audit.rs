//! What can be done to an audit log, and that it is seen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::sync::OnceLock;

use casemate_broker::audit::{AuditLog, ChainError, Head, Record, Summary, verify};
use common::record;
use proptest::prelude::*;

const RECORDS: u64 = 8;

/// A log and where it ends.
fn log() -> (Vec<u8>, Head) {
    static LOG: OnceLock<(Vec<u8>, Head)> = OnceLock::new();
    LOG.get_or_init(write_log).clone()
}

fn write_log() -> (Vec<u8>, Head) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = AuditLog::open(&path, &Head::default()).unwrap();
    for number in 0..RECORDS {
        log.append(record(number)).unwrap();
    }
    let head = log.head().clone();
    (std::fs::read(path).unwrap(), head)
}

fn lines(log: &[u8]) -> Vec<&[u8]> {
    log.split_inclusive(|byte| *byte == b'\n').collect()
}

fn check(log: &[u8], anchor: Option<&Head>) -> Result<Summary, ChainError> {
    verify(log, anchor)
}

#[test]
fn what_was_written_is_whole() {
    let (log, head) = log();
    let expected = Summary {
        head: head.clone(),
        releases: 5,
        refusals: 3,
        test_releases: 1,
        length: u64::try_from(log.len()).unwrap(),
        partial: 0,
    };
    assert_eq!(check(&log, None).unwrap(), expected);
    assert_eq!(check(&log, Some(&head)).unwrap(), expected);
    let by_hash = Head { records: 0, hash: head.hash };
    assert_eq!(check(&log, Some(&by_hash)).unwrap(), expected);
    assert_eq!(check(b"", None).unwrap(), Summary::default());
}

#[test]
fn it_goes_on_where_it_ended_and_only_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = AuditLog::open(&path, &Head::default()).unwrap();
    let head = log.append(record(0)).unwrap().clone();
    assert!(AuditLog::open(&path, &head).is_err());
    drop(log);
    let mut log = AuditLog::open(&path, &head).unwrap();
    assert_eq!(log.append(record(1)).unwrap().records, 2);
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(check(&whole, Some(&head)).unwrap().head, *log.head());
}

#[test]
fn records_missing_at_the_end_are_seen_by_who_knows_the_end() {
    let (log, head) = log();
    let lines = lines(&log);
    for kept in 0..lines.len() {
        let shorter = lines[..kept].concat();
        assert!(check(&shorter, None).is_ok(), "only the end shows that the end is missing");
        assert!(matches!(check(&shorter, Some(&head)), Err(ChainError::Truncated { .. })));
        let by_hash = Head { records: 0, hash: head.hash.clone() };
        assert!(matches!(check(&shorter, Some(&by_hash)), Err(ChainError::NoSuchHead(_))));
    }
}

#[test]
fn a_log_that_was_written_anew_is_another_log() {
    let (_, head) = log();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut other = AuditLog::open(&path, &Head::default()).unwrap();
    for number in 0..RECORDS {
        other.append(Record { peer: "vsock:4".into(), ..record(number) }).unwrap();
    }
    let bytes = std::fs::read(path).unwrap();
    assert!(check(&bytes, None).is_ok());
    assert!(matches!(check(&bytes, Some(&head)), Err(ChainError::OtherHead { .. })));
}

#[test]
fn endless_lines_and_other_files_are_no_logs() {
    assert!(matches!(check(&vec![b'a'; 1 << 20], None), Err(ChainError::Malformed { .. })));
    assert!(matches!(check(b"{}\n", None), Err(ChainError::Malformed { .. })));
    assert!(matches!(check(b"\n\n\n", None), Err(ChainError::Malformed { .. })));
    let zeros = [b"{\"sequence\":1,\"hash\":\"".as_slice(), &[b'0'; 96], b"\"}\n"].concat();
    assert!(matches!(check(&zeros, None), Err(ChainError::Malformed { .. })));
}

proptest! {
    #[test]
    fn any_changed_byte_is_seen(at in any::<prop::sample::Index>(), mask in 1..=255_u8) {
        let (mut log, head) = log();
        let at = at.index(log.len());
        log[at] ^= mask;
        prop_assert!(check(&log, Some(&head)).is_err(), "byte {}", at);
    }

    #[test]
    fn any_cut_is_seen(at in any::<prop::sample::Index>()) {
        let (log, head) = log();
        prop_assert!(check(&log[..at.index(log.len())], Some(&head)).is_err());
    }

    #[test]
    fn any_removed_repeated_or_moved_record_is_seen(
        one in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
    ) {
        let (log, head) = log();
        let lines = lines(&log);
        let (one, other) = (one.index(lines.len()), other.index(lines.len()));
        let mut removed = lines.clone();
        removed.remove(one);
        prop_assert!(check(&removed.concat(), Some(&head)).is_err(), "{} removed", one);
        let mut repeated = lines.clone();
        repeated.insert(other, lines[one]);
        prop_assert!(check(&repeated.concat(), Some(&head)).is_err(), "{} at {}", one, other);
        if one != other {
            let mut moved = lines.clone();
            moved.swap(one, other);
            prop_assert!(check(&moved.concat(), Some(&head)).is_err(), "{} and {}", one, other);
        }
    }

    #[test]
    fn any_bytes_are_a_log_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = check(&bytes, None);
        let _ = check(&bytes, Some(&Head { records: 3, hash: "a".repeat(96) }));
    }
}
