//! What can be done to an audit log, and that it is seen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::sync::OnceLock;

use casemate_broker::audit::{AuditLog, ChainError, Event, Head, Record, Summary, verify};
use common::{key, record};
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
    let mut log = AuditLog::open(&path, &Head::default(), key()).unwrap();
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
    let found = verify(log, anchor, None);
    // The key adds a condition; without a line of another's it changes nothing.
    let with_key = verify(log, anchor, Some(&key()));
    assert_eq!(found.as_ref().ok(), with_key.as_ref().ok());
    found
}

#[test]
fn what_was_written_is_whole() {
    let (log, head) = log();
    let expected = Summary {
        head: head.clone(),
        releases: 5,
        refusals: 3,
        unanswered: 0,
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
    let mut log = AuditLog::open(&path, &Head::default(), key()).unwrap();
    let head = log.append(record(0)).unwrap().clone();
    assert!(AuditLog::open(&path, &head, key()).is_err());
    drop(log);
    let mut log = AuditLog::open(&path, &head, key()).unwrap();
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
    let mut other = AuditLog::open(&path, &Head::default(), key()).unwrap();
    for number in 0..RECORDS {
        other.append(Record { peer: "vsock:4".into(), ..record(number) }).unwrap();
    }
    let bytes = std::fs::read(path).unwrap();
    assert!(check(&bytes, None).is_ok());
    assert!(matches!(check(&bytes, Some(&head)), Err(ChainError::OtherHead { .. })));
}

/// Adds a record that no broker wrote: whoever can write the file can compute hashes.
fn forge(log: &[u8]) -> Vec<u8> {
    let last = lines(log).pop().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(last).unwrap();
    let fields = record.as_object_mut().unwrap();
    let (sequence, hash) = (fields["sequence"].as_u64().unwrap(), fields.remove("hash").unwrap());
    fields.insert("peer".into(), "vsock:77".into());
    fields.insert("previous".into(), hash);
    fields.insert("sequence".into(), (sequence + 1).into());
    let mac = fields.remove("mac").unwrap();
    let mut line = record.to_string();
    line.pop();
    line.push_str(&format!(",\"mac\":{mac}"));
    let hash = common::hex(ring::digest::digest(&ring::digest::SHA384, line.as_bytes()).as_ref());
    [log, line.as_bytes(), format!(",\"hash\":\"{hash}\"}}\n").as_bytes()].concat()
}

#[test]
fn records_that_no_broker_wrote_are_found_by_the_key() {
    let (log, head) = log();
    let forged = forge(&log);
    assert_eq!(verify(forged.as_slice(), Some(&head), None).unwrap().head.records, RECORDS + 1);
    let error = verify(forged.as_slice(), Some(&head), Some(&key())).unwrap_err();
    assert!(matches!(error, ChainError::Forged(number) if number == RECORDS + 1), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, &forged).unwrap();
    assert!(AuditLog::open(&path, &head, key()).is_err());
    // Nor is a whole log of another store's broker this one's.
    let other = common::other_key();
    assert!(matches!(verify(log.as_slice(), None, Some(&other)), Err(ChainError::Forged(1))));
}

#[test]
fn a_record_that_was_not_answered_is_not_counted_as_a_release() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = AuditLog::open(&path, &Head::default(), key()).unwrap();
    log.append(record(1)).unwrap();
    log.append(record(2)).unwrap();
    log.append(Record { event: Event::Unanswered, ..record(0) }).unwrap();
    let summary = check(&std::fs::read(&path).unwrap(), None).unwrap();
    assert_eq!((summary.releases, summary.unanswered, summary.test_releases), (1, 1, 1));
    log.append(Record { event: Event::Unanswered, ..record(0) }).unwrap();
    assert!(check(&std::fs::read(&path).unwrap(), None).is_err(), "it speaks of no record");
}

#[test]
fn endless_lines_and_other_files_are_no_logs() {
    assert!(matches!(check(&vec![b'a'; 1 << 20], None), Err(ChainError::Malformed { .. })));
    assert!(matches!(check(b"{}\n", None), Err(ChainError::Malformed { .. })));
    assert!(matches!(check(b"\n\n\n", None), Err(ChainError::Malformed { .. })));
    let zeros = [b"{\"sequence\":1,\"hash\":\"".as_slice(), &[b'0'; 96], b"\"}\n"].concat();
    assert!(matches!(check(&zeros, None), Err(ChainError::Malformed { .. })));
}

/// Texts that peers choose: of any length, and with characters that act on a terminal.
fn foreign() -> impl Strategy<Value = String> {
    let any = proptest::collection::vec(any::<char>(), 0..40);
    let hostile = "[\\x00-\\x1f\\x7f-\u{9f}\u{202e}\u{2028}\"\\\\{}:,a\u{1f512}]{0,40}";
    (prop_oneof![any.prop_map(String::from_iter), hostile], 1_usize..400)
        .prop_map(|(text, repeat)| text.repeat(repeat))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever peers get into a record, the reader accepts it, and it shows on one line.
    #[test]
    fn every_record_that_is_appended_is_verified(
        texts in proptest::collection::vec(foreign(), 10),
        names in proptest::collection::vec(foreign(), 0..4),
        repeat in 1_usize..100,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = AuditLog::open(&path, &Head::default(), key()).unwrap();
        let text = |at: usize| texts[at].clone();
        let record = Record {
            time: text(0),
            event: Event::Refusal,
            peer: text(1),
            secret: Some(text(2)),
            nonce: Some(text(3)),
            evidence: Some(text(4)),
            policy: Some(text(5)),
            verdict: Some(text(6)),
            failing: names.iter().cycle().take(names.len() * repeat).cloned().collect(),
            trust: Some(text(7)),
            answered: vec![text(7); 9],
            reason: text(8),
        };
        log.append(record.clone()).unwrap();
        log.append(record).unwrap();
        let head = log.head().clone();
        drop(log);
        let written = std::fs::read_to_string(&path).unwrap();
        prop_assert_eq!(check(written.as_bytes(), Some(&head)).unwrap().refusals, 2);
        let again = AuditLog::open(&path, &head, key()).unwrap();
        prop_assert_eq!(again.head(), &head);
        let acts = |character: char| character.is_control() || "\u{202e}\u{2028}".contains(character);
        prop_assert!(written.lines().all(|line| !line.contains(acts)));
    }
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
