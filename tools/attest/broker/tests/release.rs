//! Who gets a secret, who does not, and what is written down about it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use casemate_broker::{Endorsements, ReleasePolicy};
use casemate_protocol::TeeKey;
use casemate_test_support::chip::Report;
use common::{
    Folder, Guest, ID, SECRET, ask, attest, attestation, begin, endorsements, head, id, policy,
    secret,
};
use kbs_types::TeePubKey;
use serde_json::{Value, json};

fn key() -> TeeKey {
    TeeKey::generate().unwrap()
}

fn resource(name: &str) -> String {
    format!("resource/{name}")
}

#[test]
fn the_right_guest_gets_the_secret_and_it_is_written_down() {
    let folder = Folder::new();
    let broker = folder.broker();
    let key = key();
    let (session, answer, _) = attest(&broker, &Guest::good(), key.public());
    assert_eq!(answer.status, 200);
    let (answer, message) = ask(&broker, &head("GET", &resource(ID), Some(&session)), &Value::Null);
    assert_eq!(answer.status, 200, "{message}");
    let opened = key.open(serde_json::from_value(message).unwrap()).unwrap();
    assert_eq!(opened.as_slice(), SECRET.as_bytes());

    let records = folder.records();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record["event"], "release");
    assert_eq!(record["answered"], json!(["platform", "firmware", "fresh"]));
    assert_eq!(record["secret"], ID);
    assert_eq!(record["verdict"], "accept");
    assert_eq!(record["failing"], json!([]));
    assert_eq!(record["trust"], "TEST");
    for name in ["evidence", "policy", "previous", "hash"] {
        assert_eq!(record[name].as_str().unwrap().len(), 96, "{name}");
    }
}

/// Asks for the secret as `guest`. A guest that fails to attest, or has the secret refused, is told
/// so with 401 and leaves one record, which is returned.
fn refused(guest: &Guest, endorsements: Endorsements) -> Value {
    let folder = Folder::new();
    let broker = folder.broker_with(endorsements);
    let (session, answer, _) = attest(&broker, guest, key().public());
    if answer.status == 200 {
        let (answer, json) =
            ask(&broker, &head("GET", &resource(ID), Some(&session)), &Value::Null);
        assert_eq!(answer.status, 401, "{json}");
        assert!(json.get("ciphertext").is_none());
    } else {
        assert_eq!(answer.status, 401);
    }
    let mut records = folder.records();
    assert_eq!(records.len(), 1, "{records:?}");
    let record = records.remove(0);
    assert_eq!(record["event"], "refusal");
    record
}

#[test]
fn one_other_byte_in_the_command_line_is_another_measurement() {
    let guest = Guest { command_line: "console=ttyS0 root=/dev/mapper/rooT", ..Guest::good() };
    let record = refused(&guest, endorsements());
    assert_eq!(record["failing"], json!(["measurement"]));
    assert_eq!(record["secret"], ID);
}

#[test]
fn a_guest_that_the_host_may_debug_gets_nothing() {
    let guest = Guest { policy: Report::DEBUG_POLICY, ..Guest::good() };
    assert_eq!(refused(&guest, endorsements())["failing"], json!(["policy-debug"]));
}

#[test]
fn evidence_over_another_nonce_or_key_is_refused() {
    let guest = Guest { report_data: Some([7; 64]), ..Guest::good() };
    let record = refused(&guest, endorsements());
    assert_eq!(record["failing"], json!(["report-data"]));
    assert_eq!(record["secret"], Value::Null);
}

#[test]
fn the_test_root_counts_only_when_named() {
    let record = refused(&Guest::good(), Endorsements { test_root: None, ..endorsements() });
    let failing = record["failing"].as_array().unwrap();
    assert!(failing.contains(&json!("chain")), "{failing:?}");
    let record =
        refused(&Guest::good(), Endorsements { chip_certificates: vec![], ..endorsements() });
    let failing = record["failing"].as_array().unwrap();
    assert!(failing.contains(&json!("certificate-parse")), "{failing:?}");
}

#[test]
fn a_revocation_list_of_the_broker_counts() {
    let file = |name: &str| {
        casemate_test_support::evidence::file(&format!("synthetic/{name}.der")).unwrap()
    };
    let revoked =
        Endorsements { revocation_lists: vec![file("crl-ask-revoked")], ..endorsements() };
    let record = refused(&Guest::good(), revoked);
    assert!(record["failing"].as_array().unwrap().contains(&json!("revoked")), "{record}");
}

#[test]
fn a_nonce_is_good_for_one_attestation() {
    let folder = Folder::new();
    let broker = folder.broker();
    let key = key();
    let (session, nonce) = begin(&broker);
    let message = attestation(&Guest::good(), &nonce, key.public());
    let path = head("POST", "attest", Some(&session));
    assert_eq!(ask(&broker, &path, &message).0.status, 200);
    // Again in the same session, and in another one.
    let (answer, json) = ask(&broker, &path, &message);
    assert_eq!(answer.status, 401);
    assert!(json["detail"].as_str().unwrap().contains("used already"), "{json}");
    let (other, _) = begin(&broker);
    let (answer, json) = ask(&broker, &head("POST", "attest", Some(&other)), &message);
    assert_eq!(answer.status, 401);
    assert!(json["detail"].as_str().unwrap().contains("not this session's"), "{json}");
    // The failed attempt has used up the other session's nonce; a session that never was has none.
    for session in [Some(other.as_str()), Some("invented"), None] {
        assert_eq!(ask(&broker, &head("POST", "attest", session), &message).0.status, 401);
    }
    let records = folder.records();
    // Anybody can name a session that never was: that is not recorded.
    assert_eq!(records.len(), 3, "{records:?}");
    for record in &records {
        assert_eq!(record["failing"], json!(["nonce"]));
        assert_eq!(record["nonce"], nonce);
    }
}

#[test]
fn each_secret_has_its_own_policy_and_none_means_nobody() {
    let folder = Folder::new();
    let broker = folder.broker();
    let store = folder.store();
    let debug = "{\"measurements\": [], \"allow_debug\": false}";
    let nobody = ReleasePolicy { snp: Some(debug.into()), ..ReleasePolicy::default() };
    store.put(&id("default/key/nobody"), &secret("other", nobody)).unwrap();
    store.put(&id("default/key/none"), &secret("other", ReleasePolicy::default())).unwrap();
    let (session, _, _) = attest(&broker, &Guest::good(), key().public());
    let get = |name: &str| {
        let (answer, json) =
            ask(&broker, &head("GET", &resource(name), Some(&session)), &Value::Null);
        (answer.status, json["detail"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(get(ID).0, 200);
    assert_eq!(
        get("default/key/nobody"),
        (401, "the evidence is not accepted: measurement".into())
    );
    assert_eq!(get("default/key/none"), (401, "the secret has no policy for snp guests".into()));
    assert_eq!(get("default/key/missing").0, 404);
    for name in ["a/b", "a/b/c/d", "../../etc", "a/b/c?x=1", "a/b/%63", ""] {
        assert_eq!(get(name).0, 404, "{name}");
    }
    let events: Vec<_> = folder.records().iter().map(|record| record["event"].clone()).collect();
    assert_eq!(events.len(), 10);
    assert_eq!(events.iter().filter(|event| *event == "release").count(), 1);
}

#[test]
fn an_identifier_may_begin_with_a_slash_as_trustee_s_clients_write_it() {
    let folder = Folder::new();
    let broker = folder.broker();
    let (session, ..) = attest(&broker, &Guest::good(), key().public());
    let status =
        |id: &str| ask(&broker, &head("GET", &resource(id), Some(&session)), &Value::Null).0.status;
    assert_eq!(status(&format!("/{ID}")), 200);
    assert_eq!(status(&format!("//{ID}")), 404);
}

#[test]
fn the_token_stands_for_the_session() {
    let folder = Folder::new();
    let broker = folder.broker();
    let (_, _, json) = attest(&broker, &Guest::good(), key().public());
    let token = json["token"].as_str().unwrap();
    let with = |token: &str| {
        let mut head = head("GET", &resource(ID), Some("ended"));
        head.token = Some(token.into());
        ask(&broker, &head, &Value::Null).0.status
    };
    assert_eq!(with(token), 200);
    assert_eq!(with(&token[..token.len() - 1]), 401);

    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    // The root is a TEST root: the hardware is not recognized, and the whole contraindicated.
    assert_eq!(claims["ear_status"], "contraindicated");
    let cpu = &claims["submods"]["cpu0"];
    assert_eq!(cpu["ear_status"], "contraindicated");
    assert_eq!(cpu["ear_trustworthiness_vector"]["hardware"], 97);
    let evidence = &cpu["ear_attester_claims"];
    assert_eq!(evidence["snp"]["trust"], "TEST");
    assert_eq!(evidence["runtime_data_claims"]["tee-pubkey"]["kty"], "EC");
}

#[test]
fn clients_with_rsa_keys_are_served() {
    use rsa::traits::PublicKeyParts as _;
    let folder = Folder::new();
    let broker = folder.broker();
    let private =
        rsa::PrivateKey::new(&mut rsa::rand_core::UnwrapErr(getrandom::SysRng), 2048).unwrap();
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let public = TeePubKey::RSA {
        alg: "RSA-OAEP-256".into(),
        k_mod: encode(&private.n_bytes()),
        k_exp: encode(&private.e_bytes()),
    };
    let (session, answer, _) = attest(&broker, &Guest::good(), &public);
    assert_eq!(answer.status, 200);
    let (_, message) = ask(&broker, &head("GET", &resource(ID), Some(&session)), &Value::Null);
    let field =
        |name: &str| BASE64_URL_SAFE_NO_PAD.decode(message[name].as_str().unwrap()).unwrap();
    let content = private.oaep_decrypt::<sha2::Sha256>(&field("encrypted_key")).unwrap();
    let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &content).unwrap();
    let nonce = ring::aead::Nonce::try_assume_unique_for_key(&field("iv")).unwrap();
    let associated = ring::aead::Aad::from(message["protected"].as_str().unwrap());
    let mut text = [field("ciphertext"), field("tag")].concat();
    let opened =
        ring::aead::LessSafeKey::new(key).open_in_place(nonce, associated, &mut text).unwrap();
    assert_eq!(opened, SECRET.as_bytes());
}

#[test]
fn keys_that_cannot_be_encrypted_to_are_refused_before_anything_is_released() {
    let folder = Folder::new();
    let broker = folder.broker();
    let weak = TeePubKey::RSA { alg: "RSA1_5".into(), k_mod: "AQAB".into(), k_exp: "AQAB".into() };
    assert_eq!(attest(&broker, &Guest::good(), &weak).1.status, 401);
    assert_eq!(folder.records()[0]["event"], "refusal");
}

#[test]
fn a_request_says_what_it_speaks() {
    let folder = Folder::new();
    let broker = folder.broker();
    let auth = |request: Value| ask(&broker, &head("POST", "auth", None), &request).0.status;
    assert_eq!(auth(json!({"version": "0.4.9", "tee": "tdx", "extra-params": ""})), 200);
    let hashes = json!({"supported-hash-algorithms": ["sha256", "SHA384"]});
    assert_eq!(auth(json!({"version": "0.4.0", "tee": "snp", "extra-params": hashes})), 200);
    let hashes = json!({"supported-hash-algorithms": ["sm3"]});
    assert_eq!(auth(json!({"version": "0.4.0", "tee": "snp", "extra-params": hashes})), 401);
    assert_eq!(auth(json!({"version": "0.3.0", "tee": "snp", "extra-params": ""})), 401);
    for unjudged in ["sample", "sgx", "cca", "se", "csv"] {
        let request = json!({"version": "0.4.0", "tee": unjudged, "extra-params": ""});
        let (answer, body) = ask(&broker, &head("POST", "auth", None), &request);
        assert_eq!((answer.status, answer.session), (401, None), "{unjudged}: {body}");
    }
    assert_eq!(auth(json!({"version": "0.4.0", "tee": "abacus", "extra-params": ""})), 400);
    assert_eq!(auth(json!([])), 400);
}

#[test]
fn wrong_methods_learn_the_right_one() {
    let folder = Folder::new();
    let broker = folder.broker();
    let allowed = |method: &str, path: &str| {
        let (answer, _) = ask(&broker, &head(method, path, None), &Value::Null);
        (answer.status, answer.allow)
    };
    for method in ["GET", "PUT", "DELETE", "post"] {
        assert_eq!(allowed(method, "auth"), (405, Some("POST")));
        assert_eq!(allowed(method, "attest"), (405, Some("POST")));
    }
    for method in ["POST", "PUT", "DELETE", "HEAD"] {
        assert_eq!(allowed(method, &resource(ID)), (405, Some("GET")));
    }
    assert_eq!(allowed("GET", "elsewhere"), (404, None));
    assert_eq!(allowed("GET", &resource(ID)), (401, None));
}

#[test]
fn the_secret_is_nowhere_on_disk_in_the_clear() {
    let folder = Folder::new();
    let broker = folder.broker();
    let (session, _, _) = attest(&broker, &Guest::good(), key().public());
    let (answer, _) = ask(&broker, &head("GET", &resource(ID), Some(&session)), &Value::Null);
    assert_eq!(answer.status, 200);
    let files = folder.path("");
    assert!(!common::on_disk(&files, SECRET.as_bytes()));
    // Nor is the policy, which could be changed to let others in.
    assert!(!common::on_disk(&files, policy().snp.unwrap().as_bytes()));
    assert!(
        common::on_disk(&files, ID.as_bytes()),
        "the files that were looked at are the store's"
    );
}
