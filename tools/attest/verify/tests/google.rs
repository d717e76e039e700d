//! Attestations of Google's virtual TPM, and event logs of firmware.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::cloud::{Case, cases};
use casemate_verify::google::{GoogleClaims, GooglePolicy, verify};
use casemate_verify::tpm::PcrPolicy;
use casemate_verify::{CheckName, Judgement, Outcome, Question, Timestamp, Verdict};
use proptest::prelude::*;

fn judge(case: &Case) -> Judgement<GoogleClaims> {
    let tpm = PcrPolicy { nonce: case.nonce.clone(), ..PcrPolicy::default() };
    let at = Timestamp::parse(case.at.as_deref().unwrap()).unwrap();
    let intermediate = &case.files["intermediate"][..];
    verify(&case.files["attestation"], &[intermediate], &GooglePolicy { tpm }, at)
}

fn genuine() -> Case {
    let all = cases("gcp-vtpm").unwrap();
    all.into_iter().find(|case| case.verdict == "accept").unwrap()
}

#[test]
fn every_case_gets_its_verdict() {
    let cases = cases("gcp-vtpm").unwrap();
    assert_eq!(cases.len(), 3);
    for case in &cases {
        let judgement = judge(case);
        let failed: Vec<&str> = judgement.failed().map(CheckName::as_str).collect();
        case.expect(judgement.verdict.as_str(), &failed);
    }
}

/// The TPM is the host's: nothing says that memory is encrypted.
#[test]
fn the_platform_is_not_answered() {
    let judgement = judge(&genuine());
    assert_eq!(judgement.answer(Question::Platform), Outcome::NotDone);
    assert_eq!(judgement.answer(Question::Fresh), Outcome::Passed);
    assert!(judgement.checks.iter().any(|check| check.name.as_str() == "event-log"));
}

#[test]
fn a_certificate_of_another_purpose_does_not_issue_the_key() {
    let mut case = genuine();
    let intermediate = case.files["intermediate"].clone();
    for at in (0..intermediate.len()).step_by(11) {
        let mut changed = intermediate.clone();
        changed[at] ^= 1;
        case.files.insert("intermediate".into(), changed);
        assert_eq!(judge(&case).verdict, Verdict::Reject, "byte {at}");
    }
    case.files.insert("intermediate".into(), Vec::new());
    assert_eq!(judge(&case).verdict, Verdict::Reject);
}

/// The parts that decide: key, SHA-256 quote, its registers, the log and the certificate.
#[test]
fn every_byte_that_decides_counts() {
    let mut case = genuine();
    let length = case.files["attestation"].len();
    let mut accepted = Vec::new();
    for at in (0..length).step_by(3) {
        case.files.get_mut("attestation").unwrap()[at] ^= 1;
        if judge(&case).verdict != Verdict::Reject {
            accepted.push(at);
        }
        case.files.get_mut("attestation").unwrap()[at] ^= 1;
    }
    // Algorithms and other attributes of the key, which nobody signs: its numbers are the certificate's.
    let area = 3..25;
    // Quotes of the SHA-1 and SHA-384 banks; and in the log digests of those banks, and data of events.
    let quotes = 283..4292;
    let in_log = |at: &usize| (4292..28262).contains(at);
    let free = |at: &usize| {
        area.contains(at) || in_log(at) || (quotes.contains(at) && !(1297..2599).contains(at))
    };
    let wrong: Vec<_> = accepted.iter().filter(|at| !free(at)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn prefixes_are_refused(cut in 0..29_602_usize) {
        let mut case = genuine();
        case.files.get_mut("attestation").unwrap().truncate(cut);
        prop_assert_eq!(judge(&case).verdict, Verdict::Reject);
    }
}
