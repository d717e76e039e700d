//! Documents of Nitro enclaves: real cases with their mutations.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::cloud::{self, Case, cases};
use casemate_verify::nitro::{NitroClaims, NitroPolicy, verify};
use casemate_verify::{CheckName, Judgement, Outcome, Question, Timestamp, Verdict};
use proptest::prelude::*;
use serde_json::json;

fn judge(case: &Case) -> Judgement<NitroClaims> {
    let policy = NitroPolicy::from_json(case.policy.to_string().as_bytes()).unwrap();
    let at = Timestamp::parse(case.at.as_deref().unwrap()).unwrap();
    verify(&case.files["doc"], &policy, at)
}

fn genuine(id: &str) -> Case {
    cloud::case("nitro-document", id).unwrap()
}

#[test]
fn every_case_gets_its_verdict() {
    let cases = cases("nitro-document").unwrap();
    assert_eq!(cases.len(), 10);
    for case in &cases {
        let judgement = judge(case);
        let failed: Vec<&str> = judgement.failed().map(CheckName::as_str).collect();
        case.expect(judgement.verdict.as_str(), &failed);
    }
}

#[test]
fn claims_are_those_of_the_document() {
    let case = genuine("nitro-dstack");
    let judgement = judge(&case);
    let claims = serde_json::to_value(judgement.claims.as_ref().unwrap()).unwrap();
    let facts = &case.entry["facts"];
    for name in ["module_id", "timestamp_ms", "user_data", "nonce"] {
        assert_eq!(claims[name], facts[name], "{name}");
    }
    for (number, value) in facts["pcrs"].as_object().unwrap() {
        assert_eq!(&claims["pcrs"][number], value, "PCR {number}");
    }
    assert_eq!(judgement.answer(Question::Platform), Outcome::Passed);
    assert_eq!(judgement.answer(Question::System), Outcome::NotDone);
}

#[test]
fn every_signed_byte_counts() {
    let mut case = genuine("nitro-dstack");
    let length = case.files["doc"].len();
    for at in 0..length {
        case.files.get_mut("doc").unwrap()[at] ^= 1;
        assert_eq!(judge(&case).verdict, Verdict::Reject, "byte {at}");
        case.files.get_mut("doc").unwrap()[at] ^= 1;
    }
}

#[test]
fn dates_of_the_chain_count() {
    let mut case = genuine("nitro-dstack");
    for (at, verdict) in [
        ("2025-12-25T15:00:00Z", Verdict::Reject),
        ("2025-12-25T16:05:00Z", Verdict::Accept),
        ("2025-12-25T20:00:00Z", Verdict::Reject),
    ] {
        case.at = Some(at.into());
        assert_eq!(judge(&case).verdict, verdict, "{at}");
    }
}

#[test]
fn registers_and_user_data_are_compared_whole() {
    let mut case = genuine("nitro-dstack");
    let facts = case.entry["facts"].clone();
    let (image, data) = (&facts["pcrs"]["0"], facts["user_data"].as_str().unwrap());
    for (policy, verdict) in [
        (json!({"pcrs": {"0": image}, "user_data": data}), Verdict::Accept),
        (json!({"pcrs": {"0": ["00".repeat(48), image]}}), Verdict::Accept),
        (json!({"pcrs": {"0": []}}), Verdict::Reject),
        (json!({"pcrs": {}}), Verdict::Reject),
        (json!({"pcrs": {"1": image}}), Verdict::Reject),
        (json!({"user_data": &data[..64]}), Verdict::Reject),
        (json!({"nonce": ""}), Verdict::Reject),
    ] {
        case.policy = policy;
        assert_eq!(judge(&case).verdict, verdict, "{}", case.policy);
    }
    for wrong in
        [json!([]), json!({"pcrs": {"0": "00"}}), json!({"pcr": {}}), json!({"nonce": "0"})]
    {
        assert!(NitroPolicy::from_json(wrong.to_string().as_bytes()).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn changed_documents_are_refused(
        cut in 0..4526_usize, at in 0..4526_usize, value in any::<[u8; 4]>(),
    ) {
        let mut case = genuine("nitro-dstack");
        let bytes = case.files.get_mut("doc").unwrap();
        let before = bytes.clone();
        if at % 2 == 0 {
            bytes.truncate(cut);
        }
        for (offset, byte) in value.into_iter().enumerate() {
            if let Some(place) = bytes.get_mut(at + offset) {
                *place = byte;
            }
        }
        let changed = *bytes != before;
        prop_assert!(judge(&case).verdict == Verdict::Reject || !changed);
    }
}
