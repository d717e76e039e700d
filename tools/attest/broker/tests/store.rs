//! The store and the log survive the end of their process, and nobody else's key opens them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use casemate_broker::audit::{AuditLog, verify};
use casemate_broker::{SecretId, Store, StoreError, StoreKey};
use common::{Folder, ID, KEY, id, policy, record, secret};

const CHILD: &str = "STORE_TEST_CHILD_FOLDER";

/// Writes for ever, and says what is done as soon as it is.
fn child(folder: &str) -> ! {
    let path = std::path::Path::new(folder);
    let key = StoreKey::parse(KEY.as_bytes()).unwrap();
    let store = Store::open(&path.join("store"), key).unwrap();
    let head = store.audit_head().unwrap();
    let mut log = AuditLog::open(&path.join("log"), &head, store.audit_key()).unwrap();
    for number in 0_u64.. {
        let id: SecretId = format!("default/key/{number}").parse().unwrap();
        store.put(&id, &secret(&format!("value {number}"), policy())).unwrap();
        log.append(record(number)).unwrap();
        println!("{number}");
        std::io::stdout().flush().unwrap();
    }
    unreachable!()
}

#[test]
fn kill_9_loses_nothing_that_was_reported_as_done() {
    if let Ok(folder) = std::env::var(CHILD) {
        child(&folder);
    }
    for wait in [3, 40, 111] {
        let folder = Folder::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "kill_9_loses_nothing_that_was_reported_as_done"])
            .env(CHILD, folder.path(""))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut done = 0;
        while done < wait {
            let line = lines.next().expect("the child goes on until it is killed").unwrap();
            done = line.parse().unwrap_or(done);
        }
        // SIGKILL, at whatever the child is doing.
        child.kill().unwrap();
        child.wait().unwrap();
        let done =
            lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last().unwrap_or(done);

        let store = folder.store();
        for number in 0..=done {
            let secret = store.get(&id(&format!("default/key/{number}"))).unwrap().unwrap();
            assert_eq!(secret.value.as_slice(), format!("value {number}").as_bytes());
            assert_eq!(secret.policy, policy());
        }
        let log = std::fs::read(folder.path("log")).unwrap();
        let summary = verify(log.as_slice(), None, Some(&store.audit_key())).unwrap();
        assert!(summary.head.records > done, "{} records, {done} + 1 done", summary.head.records);
    }
}

#[test]
fn a_broker_begins_again_after_a_kill_between_record_and_note() {
    let folder = Folder::new();
    drop(folder.broker());
    let mut log = folder.open_log();
    log.append(record(1)).unwrap();
    drop(log);
    // And a part of the next one.
    let mut file = std::fs::OpenOptions::new().append(true).open(folder.log()).unwrap();
    file.write_all(b"{\"sequence\":2,\"time\"").unwrap();
    drop(file);
    drop(folder.broker());
    // The record stays, and the next one says that it was not answered.
    let events: Vec<_> = folder.records().iter().map(|record| record["event"].clone()).collect();
    assert_eq!(events, ["release", "unanswered"]);
    assert_eq!(folder.store().audit_head().unwrap().records, 2);
    drop(folder.broker());
    assert_eq!(folder.records().len(), 2);
}

#[test]
fn a_broker_does_not_begin_with_a_log_that_was_changed() {
    let begin = |folder: &Folder| {
        let store = folder.store();
        casemate_broker::Broker::new(store, Default::default(), &folder.log()).map(drop)
    };
    // More records than anybody noted.
    let folder = Folder::new();
    let mut log = folder.open_log();
    log.append(record(1)).unwrap();
    assert!(begin(&folder).is_err(), "the log is in use");
    log.append(record(2)).unwrap();
    drop(log);
    assert!(begin(&folder).is_err(), "two records that the store does not know");
    // Records missing at the end.
    let folder = Folder::new();
    let mut log = folder.open_log();
    log.append(record(1)).unwrap();
    drop(log);
    begin(&folder).unwrap();
    std::fs::write(folder.log(), "").unwrap();
    let error = begin(&folder).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("missing at the end"), "{error}: {cause}");
}

/// As `casemate broker backup` does: while a broker runs, and it is the newest.
#[test]
fn a_backup_is_whole_and_goes_on_with_the_log() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let broker = folder.broker();
    let store = folder.store();
    store.put(&id("a/b/newest"), &secret("newest", policy())).unwrap();
    store.backup(&folder.path("backup")).unwrap();
    let mode = std::fs::metadata(folder.path("backup")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(store.backup(&folder.path("backup")).is_err(), "it would overwrite an older one");
    // The broker goes on, then all is lost but the backup and the log.
    drop(broker);
    let mut log = folder.open_log();
    for number in 1..4 {
        log.append(record(number)).unwrap();
    }
    drop((log, store));
    for file in ["store", "store-wal", "store-shm"] {
        let _ = std::fs::remove_file(folder.path(file));
    }
    std::fs::rename(folder.path("backup"), folder.path("store")).unwrap();
    assert_eq!(folder.store().get(&id("a/b/newest")).unwrap().unwrap().value.as_slice(), b"newest");
    let begin = casemate_broker::Broker::new;
    assert!(begin(folder.store(), Default::default(), &folder.log()).is_err());
    casemate_broker::Broker::restored(folder.store(), Default::default(), &folder.log()).unwrap();
    begin(folder.store(), Default::default(), &folder.log()).unwrap();
    assert_eq!(folder.records().len(), 3);
}

#[test]
fn another_key_opens_nothing() {
    let folder = Folder::new();
    folder.store().put(&id(ID), &secret("value", policy())).unwrap();
    let other = Store::open(&folder.path("store"), StoreKey::generate().unwrap());
    assert!(matches!(other, Err(StoreError::Sealed(_))));
}

#[test]
fn values_cannot_be_exchanged_in_the_file() {
    let folder = Folder::new();
    let store = folder.store();
    store.put(&id("a/b/one"), &secret("first", policy())).unwrap();
    store.put(&id("a/b/two"), &secret("second", policy())).unwrap();
    drop(store);
    let file = rusqlite::Connection::open(folder.path("store")).unwrap();
    file.execute(
        "UPDATE sealed SET value = (SELECT value FROM sealed WHERE name = 'a/b/two') \
         WHERE name = 'a/b/one'",
        [],
    )
    .unwrap();
    drop(file);
    let store = folder.store();
    assert!(matches!(store.get(&id("a/b/one")), Err(StoreError::Sealed(_))));
    assert_eq!(store.get(&id("a/b/two")).unwrap().unwrap().value.as_slice(), b"second");
}

#[test]
fn secrets_are_listed_replaced_and_removed() {
    let folder = Folder::new();
    let store = folder.store();
    store.put(&id("b/b/b"), &secret("1", policy())).unwrap();
    store.put(&id("a/a/a"), &secret("2", policy())).unwrap();
    store.put(&id("b/b/b"), &secret("3", policy())).unwrap();
    assert_eq!(store.list().unwrap(), ["a/a/a", "b/b/b"]);
    assert_eq!(store.get(&id("b/b/b")).unwrap().unwrap().value.as_slice(), b"3");
    assert!(store.remove(&id("b/b/b")).unwrap());
    assert!(!store.remove(&id("b/b/b")).unwrap());
    assert!(store.get(&id("b/b/b")).unwrap().is_none());
    for text in ["a/b", "a//c", "a/b/c/d", "a/b/c d", "../a/b", "a/.hidden/b", &"a/".repeat(200)] {
        assert!(text.parse::<SecretId>().is_err(), "{text}");
    }
}

#[test]
fn a_file_that_is_no_store_is_an_error() {
    let folder = Folder::new();
    std::fs::write(
        folder.path("store"),
        "not a database, but long enough to be read as one".repeat(50),
    )
    .unwrap();
    let opened = Store::open(&folder.path("store"), StoreKey::parse(KEY.as_bytes()).unwrap());
    assert!(matches!(opened, Err(StoreError::Sqlite { .. })));
}
