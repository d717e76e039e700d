//! Tokens of Arm CCA: real ones of test platforms with their mutations.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::cloud::{self, Case, cases};
use casemate_verify::cca::{CcaClaims, CcaPolicy, PlatformKey, verify};
use casemate_verify::{CheckName, Judgement, Outcome, Question, Verdict};
use proptest::prelude::*;
use serde_json::json;

fn policy(case: &Case) -> CcaPolicy {
    let nonce: String =
        case.nonce.as_deref().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    CcaPolicy::from_json(json!({ "nonce": nonce }).to_string().as_bytes()).unwrap()
}

fn judge(case: &Case) -> Judgement<CcaClaims> {
    let key = PlatformKey::from_jwk(&case.files["key"]).unwrap();
    verify(&case.files["token"], Some(&key), &policy(case))
}

fn genuine(id: &str) -> Case {
    cloud::case("cca-token", id).unwrap()
}

#[test]
fn every_case_gets_its_verdict() {
    let cases = cases("cca-token").unwrap();
    assert_eq!(cases.len(), 8);
    for case in &cases {
        let judgement = judge(case);
        let failed: Vec<&str> = judgement.failed().map(CheckName::as_str).collect();
        case.expect(judgement.verdict.as_str(), &failed);
    }
}

#[test]
fn claims_are_those_of_the_token() {
    for id in ["cca-tf-rmm", "cca-profile-2023"] {
        let case = genuine(id);
        let judgement = judge(&case);
        let claims = serde_json::to_value(judgement.claims.as_ref().unwrap()).unwrap();
        let facts = &case.entry["facts"];
        for name in ["platform_profile", "realm_profile", "implementation_id", "instance_id", "rim"]
        {
            assert_eq!(claims[name], facts[name], "{id}: {name}");
        }
        assert_eq!(judgement.answer(Question::Platform), Outcome::Passed);
        assert_eq!(judgement.answer(Question::Fresh), Outcome::Passed);
    }
}

#[test]
fn only_the_named_key_is_an_anchor() {
    let case = genuine("cca-tf-rmm");
    let judgement = verify(&case.files["token"], None, &policy(&case));
    assert_eq!(judgement.verdict, Verdict::Reject);
    let check =
        judgement.checks.iter().find(|it| it.name.as_str() == "platform-signature").unwrap();
    assert_eq!(check.result, Outcome::NotDone);
    // Another point of the curve: the generator.
    let x = "qofKIr6LBTeOscce8yCtdG4dO2KLp5uYWfdB4IJUKjhVAvJdv1UpbDpUXjhydgq3";
    let y = "NhfeSpYmLG9dnpi_kpLcKfj0Hb0omhR86doxE7XwuMAKYLHOHX6BnXpDHXyQ6g5f";
    let other = json!({"kty": "EC", "crv": "P-384", "x": x, "y": y}).to_string();
    let other = PlatformKey::from_jwk(other.as_bytes()).unwrap();
    let judgement = verify(&case.files["token"], Some(&other), &policy(&case));
    let failed: Vec<&str> = judgement.failed().map(CheckName::as_str).collect();
    assert_eq!(failed, ["platform-signature"]);
    for wrong in ["{}", r#"{"kty": "EC", "crv": "P-521", "x": "", "y": ""}"#] {
        assert!(PlatformKey::from_jwk(wrong.as_bytes()).is_err());
    }
}

#[test]
fn every_signed_byte_counts_and_halves_do_not_mix() {
    let mut case = genuine("cca-tf-rmm");
    for at in 0..case.files["token"].len() {
        case.files.get_mut("token").unwrap()[at] ^= 1;
        assert_eq!(judge(&case).verdict, Verdict::Reject, "byte {at}");
        case.files.get_mut("token").unwrap()[at] ^= 1;
    }
    // The realm token of one realm beside the platform token of another: both signatures are right.
    let (one, other) = (genuine("cca-tf-rmm"), genuine("cca-profile-2023"));
    let halves = |case: &Case| {
        let token = &case.files["token"];
        let realm = token.windows(4).position(|window| window == [0x19, 0xac, 0xd1, 0x59]).unwrap();
        (token[..realm].to_vec(), token[realm..].to_vec())
    };
    let mut mixed = other.clone();
    mixed.files.insert("token".into(), [halves(&one).0, halves(&other).1].concat());
    let judgement = judge(&mixed);
    let failed: Vec<&str> = judgement.failed().map(CheckName::as_str).collect();
    assert_eq!(failed, ["rak-binding"], "{judgement:#?}");
}

#[test]
fn measurements_are_compared_whole() {
    let case = genuine("cca-profile-2023");
    let key = PlatformKey::from_jwk(&case.files["key"]).unwrap();
    let rim = case.entry["facts"]["rim"].as_str().unwrap();
    for (policy, verdict) in [
        (json!({"rim": rim}), Verdict::Accept),
        (json!({"rim": []}), Verdict::Reject),
        (json!({"rim": "00".repeat(32)}), Verdict::Reject),
        (json!({"rem": [null, null, null, null]}), Verdict::Accept),
        (json!({"rem": [null, null, null]}), Verdict::Reject),
        (json!({"rem": [null, null, null, "01".repeat(32)]}), Verdict::Reject),
        (json!({"implementation_ids": "00".repeat(32)}), Verdict::Reject),
        (json!({"personalization": "ff".repeat(64)}), Verdict::Reject),
    ] {
        let policy = CcaPolicy::from_json(policy.to_string().as_bytes()).unwrap();
        assert_eq!(
            verify(&case.files["token"], Some(&key), &policy).verdict,
            verdict,
            "{policy:?}"
        );
    }
    assert!(CcaPolicy::from_json(br#"{"rim": "00"}"#).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(cut in 0..1222_usize, at in 0..1222_usize, value in any::<[u8; 3]>()) {
        let mut case = genuine("cca-tf-rmm");
        let bytes = case.files.get_mut("token").unwrap();
        let before = bytes.clone();
        bytes.truncate(if at % 2 == 0 { cut } else { 1222 });
        for (offset, byte) in value.into_iter().enumerate() {
            if let Some(place) = bytes.get_mut(at + offset) {
                *place = byte;
            }
        }
        let changed = *bytes != before;
        prop_assert!(judge(&case).verdict == Verdict::Reject || !changed);
    }
}
