//! Azure's guests: evidence in the shape of the protocol's clients, and secrets with a policy for them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use casemate_broker::{Broker, Endorsements, ReleasePolicy};
use casemate_protocol::{HASH_LEN, TeeKey, report_data};
use casemate_test_support::cloud::cases;
use casemate_test_support::evidence::file;
use casemate_test_support::vtpm::{Machine, SHA256_BANK};
use common::{Folder, ask, endorsements, head, hex, id, secret};
use kbs_types::{RuntimeData, TeePubKey};
use serde_json::{Value, json};

const NAME: &str = "default/key/azure";
const SECRET: &str = "a secret of an Azure guest";
/// All registers of a bank.
const ALL: [u8; 3] = [0xff; 3];

/// A policy that names the value of PCR 4, and what a secret's policy should name besides.
fn policy(pcr_4: u8) -> ReleasePolicy {
    let json = json!({
        "tpm": {"pcrs": {"4": hex(&[pcr_4; 32])}},
        "snp": {"allow_debug": false, "vmpl": [0], "measurements": hex(&[0x5a; 48])},
    });
    ReleasePolicy { azure: Some(json.to_string()), ..ReleasePolicy::default() }
}

/// The registers' values: each byte is the register's number.
fn registers() -> Vec<u8> {
    (0..24).flat_map(|register| [register; 32]).collect()
}

/// Evidence of a machine on the TEST chip whose TPM quotes this nonce.
fn evidence(nonce: &[u8]) -> Value {
    let machine = Machine::new().unwrap();
    let values = registers();
    let hcl = machine.hcl(&[7; 64], [0x5a; 48]).unwrap();
    let (message, signature) = machine.quote(nonce, &[(SHA256_BANK, ALL)], &values).unwrap();
    let pcrs: Vec<String> = values.chunks(32).map(hex).collect();
    json!({
        "version": 1,
        "tpm_quote": {"signature": hex(&signature), "message": hex(&message), "pcrs": pcrs},
        "hcl_report": BASE64_URL_SAFE.encode(hcl),
        "vcek": BASE64_URL_SAFE.encode(file("synthetic/vcek.der").unwrap()),
    })
}

fn begin(broker: &Broker, tee: &str) -> (String, String) {
    let request = json!({"version": "0.4.0", "tee": tee, "extra-params": {}});
    let (answer, challenge) = ask(broker, &head("POST", "auth", None), &request);
    assert_eq!(answer.status, 200, "{challenge}");
    (answer.session.unwrap(), challenge["nonce"].as_str().unwrap().to_owned())
}

fn runtime(nonce: String, key: &TeePubKey) -> RuntimeData {
    RuntimeData { nonce, tee_pubkey: key.clone() }
}

/// Attests with what `evidence` makes of the hash to quote: the session, and the answer.
fn attest(
    broker: &Broker,
    tee: &str,
    key: &TeePubKey,
    additional: &str,
    evidence: impl FnOnce(&[u8]) -> Value,
) -> (String, u16, Value) {
    let (session, nonce) = begin(broker, tee);
    let runtime = runtime(nonce, key);
    let bound = report_data(&runtime, additional);
    let body = json!({
        "init-data": null,
        "runtime-data": runtime,
        "tee-evidence": {
            "primary_evidence": evidence(&bound[..HASH_LEN]),
            "additional_evidence": additional,
        },
    });
    let (answer, json) = ask(broker, &head("POST", "attest", Some(&session)), &body);
    (session, answer.status, json)
}

fn broker(folder: &Folder, pcr_4: u8) -> Broker {
    let broker = folder.broker();
    folder.store().put(&id(NAME), &secret(SECRET, policy(pcr_4))).unwrap();
    broker
}

fn get(broker: &Broker, session: &str) -> (u16, Value) {
    let path = head("GET", &format!("resource/{NAME}"), Some(session));
    let (answer, json) = ask(broker, &path, &Value::Null);
    (answer.status, json)
}

#[test]
fn the_right_guest_gets_the_secret_and_the_record_has_all_four_answers() {
    let folder = Folder::new();
    let broker = broker(&folder, 4);
    let key = TeeKey::generate().unwrap();
    let (session, status, answer) = attest(&broker, "az-snp-vtpm", key.public(), "", evidence);
    assert_eq!(status, 200, "{answer}");
    let (status, message) = get(&broker, &session);
    assert_eq!(status, 200, "{message}");
    let opened = key.open(serde_json::from_value(message).unwrap()).unwrap();
    assert_eq!(opened.as_slice(), SECRET.as_bytes());
    let records = folder.records();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record["event"], "release");
    assert_eq!(record["answered"], json!(["platform", "firmware", "system", "fresh"]));
    assert_eq!((&record["trust"], &record["failing"]), (&json!("TEST"), &json!([])));
    // The policy of another kind of guest is not this guest's.
    let path = head("GET", &format!("resource/{}", common::ID), Some(&session));
    let (answer, json) = ask(&broker, &path, &Value::Null);
    assert_eq!(answer.status, 401, "{json}");
    assert_eq!(json["detail"], "the secret has no policy for az-snp-vtpm guests");
}

#[test]
fn another_system_gets_nothing() {
    let folder = Folder::new();
    let broker = broker(&folder, 5);
    let key = TeeKey::generate().unwrap();
    let (session, status, _) = attest(&broker, "az-snp-vtpm", key.public(), "", evidence);
    assert_eq!(status, 200);
    assert_eq!(get(&broker, &session).0, 401);
    let record = folder.records().remove(0);
    assert_eq!(record["failing"], json!(["pcr"]));
    assert_eq!(record["answered"], json!(["platform", "firmware", "fresh"]));
}

#[test]
fn a_quote_over_anything_but_the_hash_is_refused() {
    let folder = Folder::new();
    let broker = broker(&folder, 4);
    let key = TeeKey::generate().unwrap();
    let refused = |change: fn(&mut Vec<u8>), failing: &str| {
        let (session, status, _) = attest(&broker, "az-snp-vtpm", key.public(), "", |nonce| {
            let mut nonce = nonce.to_vec();
            change(&mut nonce);
            evidence(&nonce)
        });
        assert_eq!(status, 401);
        assert_eq!(get(&broker, &session).0, 401);
        assert_eq!(folder.records().pop().unwrap()["failing"], json!([failing]));
    };
    refused(|nonce| nonce[0] ^= 1, "nonce");
    refused(|nonce| nonce.extend([0; 16]), "nonce");
    refused(|nonce| nonce.truncate(47), "nonce");
    // The part's checks are in the record as well.
    let forged = Endorsements { test_root: None, ..endorsements() };
    let other = Folder::new();
    let broker = other.broker_with(forged);
    let (_, status, _) = attest(&broker, "az-snp-vtpm", key.public(), "", evidence);
    assert_eq!(status, 401);
    let record = other.records().pop().unwrap();
    assert!(record["failing"].as_array().unwrap().contains(&json!("chain")), "{record}");
}

#[test]
fn devices_that_cannot_be_judged_are_refused() {
    let folder = Folder::new();
    let broker = broker(&folder, 4);
    let key = TeeKey::generate().unwrap();
    let attest = |additional| attest(&broker, "az-snp-vtpm", key.public(), additional, evidence);
    assert_eq!(attest("{}").1, 200);
    let (_, status, answer) = attest(r#"{"\u001b[2Jgpu": ["gpu", {}]}"#);
    assert_eq!(status, 401);
    let detail = answer["detail"].as_str().unwrap();
    assert!(detail.contains("cannot be judged") && !detail.contains('\u{1b}'), "{detail}");
    assert_eq!(folder.records().pop().unwrap()["failing"], json!(["additional-evidence"]));
    assert_eq!(attest("[1]").1, 401);
}

#[test]
fn the_kind_of_the_request_is_that_of_the_evidence() {
    let folder = Folder::new();
    let broker = broker(&folder, 4);
    let key = TeeKey::generate().unwrap();
    for tee in ["az-tdx-vtpm", "snp", "tdx"] {
        let (_, status, answer) = attest(&broker, tee, key.public(), "", evidence);
        assert_eq!(status, 401, "{tee}");
        assert_eq!(answer["type"], "kbs/errors/Evidence", "{tee}");
    }
    // A genuine quote of a TDX guest, in the form of older clients: judged, and not fresh.
    let case =
        cases("azure-vtpm").unwrap().into_iter().find(|case| case.id == "az-tdx-v1").unwrap();
    let bytes = |role: &str| json!(case.files[role]);
    let pcrs: Vec<_> = case.files["pcrs"].chunks(32).map(|value| json!(value)).collect();
    let json = json!({
        "tpm_quote": {"message": bytes("msg"), "signature": bytes("sig"), "pcrs": pcrs},
        "hcl_report": bytes("hcl"), "td_quote": bytes("tdquote"),
    });
    let (_, status, _) = attest(&broker, "az-tdx-vtpm", key.public(), "", |_| json);
    assert_eq!(status, 401);
    let record = folder.records().pop().unwrap();
    assert_eq!(record["trust"], "Intel");
    assert_eq!(record["verdict"], "reject");
    assert!(record["failing"].as_array().unwrap().contains(&json!("nonce")), "{record}");
}
