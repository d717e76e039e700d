//! `casemate broker` when its process or its disk fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod broker_folder;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use broker_folder::{Folder, Guest, ID, MEASUREMENT, SECRET};
use casemate_agent::{FetchError, fetch};
use casemate_broker::audit::{AuditLog, Event, Record};
use casemate_broker::{ReleasePolicy, Secret, Store, StoreKey};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const WITH_STORE: [&str; 4] = ["--store", "store", "--key", "key"];

fn open(folder: &Folder) -> Store {
    let key = StoreKey::parse(&std::fs::read(folder.path("key")).unwrap()).unwrap();
    Store::open(&folder.path("store"), key).unwrap()
}

/// `kill -9` at any time of a broker under load, as many times as `CASEMATE_KILLS` says: each time all that
/// was given out is recorded, and all that was put in is there.
#[test]
fn kill_9_under_load_loses_nothing_and_releases_nothing_unrecorded() {
    let kills = std::env::var("CASEMATE_KILLS").map_or(30, |count| count.parse().unwrap());
    let folder = Folder::new();
    folder.put();
    let store = open(&folder);
    let (received, trusted) = (AtomicU64::new(0), folder.trusted());
    for kill in 0..kills {
        let (broker, address) = folder.serve_with(folder.command(&[]), &["--rate", "60000"]);
        let dead = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (address, dead, received) = (&address, &dead, &received);
                let trusted = &trusted;
                scope.spawn(move || {
                    while !dead.load(Ordering::Relaxed) {
                        match fetch(address, &Guest(MEASUREMENT), trusted, ID) {
                            Ok(secret) => {
                                assert_eq!(secret.as_slice(), SECRET);
                                received.fetch_add(1, Ordering::Relaxed);
                            }
                            // Killed in the middle of it: then there may be a part of an answer.
                            Err(FetchError::Refused { status, detail, .. }) => {
                                panic!("{status} {detail}")
                            }
                            Err(_) => std::thread::yield_now(),
                        }
                    }
                });
            }
            // Something put in meanwhile, and a kill at another point of the work each time.
            let name = format!("default/kill/{kill}").parse().unwrap();
            let value = kill.to_string().into_bytes().into();
            store.put(&name, &Secret { value, policy: ReleasePolicy::default() }).unwrap();
            let before = received.load(Ordering::Relaxed);
            while received.load(Ordering::Relaxed) < before + kill % 4 {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros(kill * 337 % 5000));
            drop(broker);
            dead.store(true, Ordering::Relaxed);
        });
        let (status, found) = folder.verify(&WITH_STORE);
        assert_eq!(status, Some(0), "{found}");
    }
    // The last of them may have been killed before it could say that a record was not answered.
    drop(folder.serve());
    let (status, found) = folder.verify(&WITH_STORE);
    assert_eq!(status, Some(0), "{found}");
    let received = received.into_inner();
    println!("{kills} kills: {received} secrets received; the log has {found}");
    assert!(found["releases"].as_u64().unwrap() >= received, "{received} received: {found}");
    for kill in 0..kills {
        let secret = store.get(&format!("default/kill/{kill}").parse().unwrap()).unwrap().unwrap();
        assert_eq!(secret.value.as_slice(), kill.to_string().as_bytes());
    }
}

/// A log of some hundred KiB, longer than the store's files: a limit of the process's file size then is one
/// of the log alone.
fn long_log(folder: &Folder) {
    let store = open(folder);
    let head = store.audit_head().unwrap();
    let mut log = AuditLog::open(&folder.path("audit"), &head, store.audit_key()).unwrap();
    let text = "x".repeat(512);
    for _ in 0..200 {
        log.append(Record {
            time: text.clone(),
            event: Event::Refusal,
            peer: text.clone(),
            secret: Some(text.clone()),
            nonce: Some(text.clone()),
            evidence: Some(text.clone()),
            policy: Some(text.clone()),
            verdict: Some(text.clone()),
            failing: Vec::new(),
            trust: Some(text.clone()),
            answered: vec![text.clone(); 9],
            reason: text.clone(),
        })
        .unwrap();
    }
}

#[test]
fn a_full_disk_refuses_and_heals() {
    let folder = Folder::new();
    folder.put();
    long_log(&folder);
    // Beyond the limit a write fails, as on a full disk, and does not end the process.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_casemate")]);
    command.current_dir(folder.path(""));
    let (mut broker, address) = folder.serve_with(command, &["--restored"]);
    let pid = Pid::from_raw(broker.id().try_into().unwrap());
    let limit = |bytes| {
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    };
    let length = || std::fs::metadata(folder.path("audit")).unwrap().len();
    let whole = length();
    let trusted = folder.trusted();
    limit(Some(whole + 100));
    for _ in 0..3 {
        let error = fetch(&address, &Guest(MEASUREMENT), &trusted, ID).unwrap_err();
        assert!(matches!(error, FetchError::Refused { status: 503, .. }), "{error}");
        assert_eq!(length(), whole, "the part of a line that was written is taken back");
    }
    assert!(broker.lives());
    limit(None);
    assert_eq!(fetch(&address, &Guest(MEASUREMENT), &trusted, ID).unwrap().as_slice(), SECRET);
    let said = broker.kill();
    assert_eq!(said.matches("Release TEST").count(), 1, "{said}");
    let (status, found) = folder.verify(&WITH_STORE);
    assert_eq!((status, &found["releases"], &found["records"]), (Some(0), &1.into(), &201.into()));
}

#[test]
fn a_broker_takes_the_socket_of_its_dead_predecessor() {
    let folder = Folder::new();
    folder.put();
    let arguments = ["broker", "serve", "--audit", "audit", "--listen", "unix:socket"];
    let begin = || {
        let mut command = folder.command(&[&arguments[..], &WITH_STORE].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        (child, line)
    };
    for _ in 0..2 {
        let (mut child, line) = begin();
        assert_eq!(line, "listening at unix:socket\n");
        // One that lives keeps it.
        let audit = ["broker", "serve", "--audit", "other", "--listen", "unix:socket"];
        let second = folder.run(&[&audit[..], &WITH_STORE].concat(), b"");
        assert_eq!(second.status.code(), Some(2), "{second:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
