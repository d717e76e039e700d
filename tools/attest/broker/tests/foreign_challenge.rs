//! A host that has a guest's agent answer challenges, to pass the answers to a broker as its own.
//!
//! The host begins a session, makes a key, and sends the agent the broker's binding of nonce and key as
//! a challenge. Evidence over these very bytes would be accepted, and the secret encrypted to the host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use casemate_agent::{EvidenceError, EvidenceSource, check, report};
use casemate_broker::Broker;
use casemate_protocol::{Evidence, Nonce, TeeKey, report_data};
use casemate_test_support::quotes::quote;
use common::{Folder, Guest, ID, ask, head, hex};
use kbs_types::{RuntimeData, Tee};
use serde_json::{Value, json};

/// A trust domain whose quotes are signed under the TEST root.
struct TrustDomain;

impl EvidenceSource for TrustDomain {
    fn tee(&self) -> Result<Tee, EvidenceError> {
        Ok(Tee::Tdx)
    }

    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let mut report = [0; 1024];
        // REPORTDATA (Intel TDX module ABI, REPORTMACSTRUCT).
        report[128..192].copy_from_slice(report_data);
        Ok(Evidence::Tdx { quote: quote(&report).unwrap(), event_log: None })
    }
}

/// The answer of `casemate-agent check` to a VMM that sends `challenge`.
fn checked(guest: &(dyn EvidenceSource + Sync), challenge: &[u8; 64]) -> Value {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let agent = scope.spawn(move || check(&mut theirs, guest));
        ours.write_all(challenge).unwrap();
        let mut line = String::new();
        BufReader::new(&ours).read_line(&mut line).unwrap();
        ours.write_all(b"ok\n").unwrap();
        drop(ours);
        agent.join().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

/// The answer of `casemate-agent report` to `challenge`.
fn reported(guest: &(dyn EvidenceSource + Sync), challenge: &[u8]) -> Value {
    let nonce: Nonce = hex(challenge).parse().unwrap();
    serde_json::from_str(&report(&nonce, guest).unwrap()).unwrap()
}

/// Attests with evidence that `answer` gets for the binding of a broker's nonce and a key of the host's,
/// and asks for the secret: status of the attestation, and of the release.
fn attack(broker: &Broker, tee: &str, answer: impl Fn(&[u8; 64]) -> Value) -> [u16; 2] {
    let request = json!({"version": "0.4.0", "tee": tee, "extra-params": {}});
    let (begun, challenge) = ask(broker, &head("POST", "auth", None), &request);
    let session = begun.session.unwrap();
    let key = TeeKey::generate().unwrap();
    let nonce = challenge["nonce"].as_str().unwrap().into();
    let runtime = RuntimeData { nonce, tee_pubkey: key.public().clone() };
    let shown = answer(&report_data(&runtime, ""));
    let attestation = json!({
        "init-data": null,
        "runtime-data": runtime,
        "tee-evidence": {"primary_evidence": shown["evidence"], "additional_evidence": ""},
    });
    let (attested, _) = ask(broker, &head("POST", "attest", Some(&session)), &attestation);
    let resource = head("GET", &format!("resource/{ID}"), Some(&session));
    let (released, _) = ask(broker, &resource, &Value::Null);
    [attested.status, released.status]
}

/// How the host gets evidence for a binding.
type Play<'a> = &'a dyn Fn(&[u8; 64]) -> Value;

/// Plays the attack with each command that answers challenges. The broker has to refuse, because
/// REPORT_DATA is not the binding.
fn is_refused(tee: &str, guest: &(dyn EvidenceSource + Sync)) {
    let folder = Folder::new();
    let broker = folder.broker();
    let plays: [Play<'_>; 3] =
        [&|binding| checked(guest, binding), &|binding| reported(guest, binding), &|binding| {
            reported(guest, &binding[..48])
        }];
    for play in plays {
        assert_eq!(attack(&broker, tee, play), [401, 401], "{tee}");
    }
    for record in folder.records() {
        assert_eq!(record["event"], "refusal");
        let failing = record["failing"].as_array().unwrap();
        assert!(failing.contains(&json!("report-data")), "{record}");
    }
}

#[test]
fn snp_evidence_over_a_host_s_binding_is_refused() {
    is_refused("snp", &Guest::good());
}

#[test]
fn tdx_evidence_over_a_host_s_binding_is_refused() {
    is_refused("tdx", &TrustDomain);
}

/// Without a host in between the same guest gets the secret: the attack fails for its REPORT_DATA alone.
#[test]
fn the_guest_itself_gets_the_secret() {
    let folder = Folder::new();
    let broker = folder.broker();
    let guest = Guest::good();
    let own = |binding: &[u8; 64]| json!({"evidence": guest.evidence(binding).unwrap().to_json()});
    assert_eq!(attack(&broker, "snp", own), [200, 200]);
}
