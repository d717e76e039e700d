//! A guest takes secrets from the broker that it knows, whoever answers it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::sync::Mutex;

use casemate_agent::{Address, FetchError, Trusted, fetch};
use casemate_broker::http::{Answer, read_request};
use casemate_broker::{Broker, Listener, Peer, Settings, serve};
use casemate_protocol::BrokerKey;
use casemate_verify::Timestamp;
use common::{Folder, Guest, ID, SECRET, id, policy, secret};
use std::os::unix::net::UnixListener;
use std::time::Instant;

const OTHER_ID: &str = "default/key/web";

/// Serves `broker` at a socket in `folder`.
fn start(folder: &Folder, broker: Broker) -> Address {
    let path = folder.path("broker.sock");
    let address = format!("unix:{}", path.display()).parse().unwrap();
    let listener = Listener::bind(&address).unwrap();
    std::thread::spawn(move || serve(broker.into(), vec![listener], &Settings::default()));
    Address::Unix(path)
}

/// Answers at a socket in `folder` what `broker` answers after `change` has had it, with the path of the
/// request: the host between guest and broker.
fn between(
    folder: &Folder,
    broker: Broker,
    change: impl Fn(&Broker, &mut casemate_broker::http::Head) + Send + 'static,
    after: impl Fn(&str, Answer) -> Answer + Send + 'static,
) -> Address {
    let path = folder.path("host.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, body) = read_request(&mut stream, |_| ()).unwrap();
            let asked = head.path.clone();
            change(&broker, &mut head);
            let answer = broker.answer(
                &head,
                &body,
                &Peer::Unix("host".into()),
                Instant::now(),
                Timestamp::now(),
            );
            // A guest that has given up does not read.
            let _ = after(&asked, answer).write(&mut stream);
        }
    });
    Address::Unix(path)
}

fn with_two_secrets() -> (Folder, Broker) {
    let folder = Folder::new();
    let broker = folder.broker();
    folder.store().put(&id(OTHER_ID), &secret("another secret", policy())).unwrap();
    (folder, broker)
}

#[test]
fn a_rogue_broker_cannot_give_a_secret_of_its_own() {
    let (owner, rogue) = (Folder::new(), Folder::new());
    let trusted = owner.trusted();
    let broker = rogue.broker();
    rogue.store().put(&id(ID), &secret("chosen by the host", policy())).unwrap();
    let address = start(&rogue, broker);
    let error = fetch(&address, &Guest::good(), &trusted, ID).unwrap_err();
    assert!(matches!(error, FetchError::Signature), "{error}");
    // Without a key the guest takes it.
    let taken = fetch(&address, &Guest::good(), &Trusted::AnyBroker, ID).unwrap();
    assert_eq!(taken.as_slice(), b"chosen by the host");
    // One of several keys is enough.
    let Trusted::Keys(mut keys) = trusted else { panic!("no key") };
    keys.push(rogue.store().release_key().unwrap());
    assert!(fetch(&address, &Guest::good(), &Trusted::Keys(keys), ID).is_ok());
    assert!(fetch(&address, &Guest::good(), &Trusted::Keys(vec![]), ID).is_err());
}

#[test]
fn a_release_without_signature_is_refused() {
    let (folder, broker) = with_two_secrets();
    let trusted = folder.trusted();
    let address =
        between(&folder, broker, |_, _| {}, |_, answer| Answer { signature: None, ..answer });
    let error = fetch(&address, &Guest::good(), &trusted, ID).unwrap_err();
    assert!(matches!(error, FetchError::Unsigned), "{error}");
}

#[test]
fn a_release_of_another_secret_in_the_same_session_is_refused() {
    let (folder, broker) = with_two_secrets();
    let trusted = folder.trusted();
    let swap = |_: &Broker, head: &mut casemate_broker::http::Head| {
        head.path = head.path.replace(ID, OTHER_ID);
    };
    let address = between(&folder, broker, swap, |_, answer| answer);
    let error = fetch(&address, &Guest::good(), &trusted, ID).unwrap_err();
    assert!(matches!(error, FetchError::Signature), "{error}");
    // What was asked for is still given: the broker and its signature are good.
    let given = fetch(&address, &Guest::good(), &trusted, OTHER_ID).unwrap();
    assert_eq!(given.as_slice(), b"another secret");
}

#[test]
fn a_release_of_an_earlier_session_is_refused() {
    let (folder, broker) = with_two_secrets();
    let trusted = folder.trusted();
    let kept: Mutex<Option<Answer>> = Mutex::default();
    let replay = move |path: &str, answer: Answer| {
        if !path.contains("/resource/") {
            return answer;
        }
        let mut kept = kept.lock().unwrap();
        kept.get_or_insert(answer).clone()
    };
    let address = between(&folder, broker, |_, _| {}, replay);
    let first = fetch(&address, &Guest::good(), &trusted, ID).unwrap();
    assert_eq!(first.as_slice(), SECRET.as_bytes());
    let error = fetch(&address, &Guest::good(), &trusted, ID).unwrap_err();
    assert!(matches!(error, FetchError::Signature), "{error}");
}

#[test]
fn a_changed_release_is_refused_before_it_is_read() {
    let (folder, broker) = with_two_secrets();
    let trusted = folder.trusted();
    let change = |path: &str, mut answer: Answer| {
        if path.contains("/resource/") {
            answer.body = b"not even JSON".to_vec();
        }
        answer
    };
    let address = between(&folder, broker, |_, _| {}, change);
    let error = fetch(&address, &Guest::good(), &trusted, ID).unwrap_err();
    assert!(matches!(error, FetchError::Signature), "{error}");
}

#[test]
fn an_identifier_that_is_none_is_not_sent() {
    let nowhere = Address::Unix("/nowhere".into());
    for name in ["", "a/b/c\r\nCookie: x", "a/b/c d", "a/b/\u{e4}"] {
        let error = fetch(&nowhere, &Guest::good(), &Trusted::AnyBroker, name).unwrap_err();
        assert!(matches!(error, FetchError::Id(_)), "{error}");
    }
}

/// As when a broker starts while somebody prints the key for a guest's command line.
#[test]
fn all_who_open_a_new_store_at_once_get_the_same_key() {
    let folder = Folder::new();
    let stores: Vec<_> = (0..8).map(|_| folder.store()).collect();
    let barrier = std::sync::Barrier::new(stores.len());
    let keys: Vec<BrokerKey> = std::thread::scope(|scope| {
        let open = |store| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                casemate_broker::Store::release_key(store).unwrap()
            })
        };
        let threads: Vec<_> = stores.iter().map(open).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn the_key_of_a_store_stays() {
    let folder = Folder::new();
    let key: BrokerKey = folder.store().release_key().unwrap();
    assert_eq!(folder.store().release_key().unwrap(), key);
    assert_ne!(Folder::new().store().release_key().unwrap(), key);
}
