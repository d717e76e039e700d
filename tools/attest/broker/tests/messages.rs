//! Messages that were changed: none is granted that should not be, and none is a panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::sync::OnceLock;
use std::time::Instant;

use casemate_broker::{Broker, Peer};
use casemate_protocol::TeeKey;
use casemate_verify::Timestamp;
use common::{Folder, Guest, ID, attestation, begin, head};
use proptest::prelude::*;
use serde_json::Value;

fn broker() -> &'static Broker {
    static BROKER: OnceLock<(Folder, Broker)> = OnceLock::new();
    &BROKER
        .get_or_init(|| {
            let folder = Folder::new();
            let broker = folder.broker();
            (folder, broker)
        })
        .1
}

fn answer(path: &str, session: Option<&str>, body: &[u8]) -> u16 {
    let head = head("POST", path, session);
    broker().answer(&head, body, &Peer::Vsock(3), Instant::now(), Timestamp::now()).status
}

/// All places in a message where there is a text, as JSON pointers.
fn texts(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                texts(value, &format!("{at}/{name}"), found);
            }
        }
        Value::String(_) => found.push(at.to_owned()),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_no_attestation(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (session, _) = begin(broker());
        prop_assert_eq!(answer("attest", Some(&session), &body), 400);
        prop_assert!(answer("auth", None, &body) >= 400);
    }

    /// One character of any text of an attestation, one byte of it all, or its length.
    #[test]
    fn a_changed_attestation_is_refused(which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>()) {
        let (session, nonce) = begin(broker());
        let key = TeeKey::generate().unwrap();
        let mut message = attestation(&Guest::good(), &nonce, key.public());
        let mut places = Vec::new();
        texts(&message, "", &mut places);
        let place_of_text = which.get(&places);
        let text = message.pointer_mut(place_of_text).unwrap();
        let old = text.as_str().unwrap().to_owned();
        let mut new = old.clone();
        if old.is_empty() {
            new.push('x');
        } else {
            let at = place.index(old.len());
            let other = if &old[at..=at] == "B" { "C" } else { "B" };
            new.replace_range(at..=at, other);
        }
        *text = new.into();
        let status = answer("attest", Some(&session), message.to_string().as_bytes());
        prop_assert!([400, 401].contains(&status), "{} {}", status, place_of_text);
    }

    #[test]
    fn a_cut_attestation_is_refused(place in any::<prop::sample::Index>()) {
        let (session, nonce) = begin(broker());
        let key = TeeKey::generate().unwrap();
        let message = attestation(&Guest::good(), &nonce, key.public()).to_string();
        let cut = &message.as_bytes()[..place.index(message.len())];
        prop_assert_eq!(answer("attest", Some(&session), cut), 400);
    }

    #[test]
    fn no_path_without_a_session_gives_anything(method in "[A-Z]{3,4}", path in "[ -~]{0,60}") {
        for path in [path.clone(), format!("resource/{path}"), format!("resource/{ID}/{path}")] {
            let head = head(&method, &path, None);
            let status = broker().answer(&head, b"", &Peer::Vsock(3), Instant::now(), Timestamp::now()).status;
            prop_assert!((400..500).contains(&status), "{} {}", status, path);
        }
    }
}
