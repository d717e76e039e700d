//! Evidence of Azure's guests: real cases with their mutations, and quotes that a guest could make up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::cloud::{Case, cases};
use casemate_test_support::evidence::file;
use casemate_test_support::vtpm::{Machine, SHA1_BANK, SHA256_BANK};
use casemate_verify::azure::{AzureClaims, AzureEvidence, AzureFiles, AzurePolicy, verify};
use casemate_verify::tpm::QuoteParts;
use casemate_verify::{Judgement, Outcome, Question, Timestamp, Verdict};
use proptest::prelude::*;
use serde_json::json;

fn at(case: &Case) -> Timestamp {
    Timestamp::parse(case.at.as_deref().unwrap()).unwrap()
}

/// The strict policy with the case's nonce.
fn policy(case: &Case) -> AzurePolicy {
    AzurePolicy { tpm: nonce(case.nonce.as_deref().unwrap()), ..AzurePolicy::strict() }
}

fn nonce(bytes: &[u8]) -> casemate_verify::tpm::PcrPolicy {
    casemate_verify::tpm::PcrPolicy { nonce: Some(bytes.to_vec()), ..Default::default() }
}

fn evidence(case: &Case) -> AzureEvidence<'_> {
    let file = |role: &str| case.files.get(role).map(Vec::as_slice);
    let quote = file("msg").map(|message| QuoteParts {
        message,
        signature: file("sig").unwrap_or_default(),
        registers: file("pcrs").unwrap_or_default(),
    });
    AzureEvidence {
        hcl: file("hcl").unwrap_or_default(),
        quote,
        vek: file("vek"),
        td_quote: file("tdquote"),
        ..AzureEvidence::default()
    }
}

fn judge(case: &Case) -> Judgement<AzureClaims> {
    verify(&evidence(case), &policy(case), None, at(case))
}

/// Names of failed checks; those of a part also with the part's name before them.
fn failed(judgement: &Judgement<AzureClaims>) -> Vec<String> {
    let mut names: Vec<String> = judgement.failed().map(|name| name.to_string()).collect();
    for part in &judgement.parts {
        names.extend(part.judgement.failed().map(|name| format!("{}-{name}", part.part)));
    }
    // The quoting enclave's signature is named after the quote.
    names.iter().map(|name| name.replace("td-quote-quote-", "td-quote-")).collect()
}

#[test]
fn every_case_gets_its_verdict() {
    let cases = cases("azure-vtpm").unwrap();
    assert_eq!(cases.len(), 27);
    for case in &cases {
        let judgement = judge(case);
        let failed = failed(&judgement);
        let failed: Vec<&str> = failed.iter().map(String::as_str).collect();
        case.expect(judgement.verdict.as_str(), &failed);
    }
}

fn genuine(id: &str) -> Case {
    cases("azure-vtpm").unwrap().into_iter().find(|case| case.id == id).unwrap()
}

#[test]
fn genuine_evidence_answers_platform_and_freshness() {
    let judgement = judge(&genuine("az-snp-genoa"));
    let answers = Question::ALL.map(|question| judgement.answer(question));
    use Outcome::{NotDone, Passed};
    assert_eq!(answers, [Passed, NotDone, NotDone, Passed]);
    assert_eq!(judgement.claims.as_ref().unwrap().secure_boot, Some(true));
    let json = serde_json::to_value(judgement).unwrap();
    assert_eq!(json["parts"][0]["part"], "snp-report");
    assert_eq!(json["parts"][0]["verdict"], "accept");
    assert_eq!(json["answers"]["fresh"], "passed");
    assert!(json["claims"]["pcrs"]["23"].is_string(), "{json:#}");
}

/// Bytes that nobody signed: header and padding of the paravisor's report.
fn unsigned(case: &Case) -> impl Fn(usize) -> bool + use<> {
    let size = u32::from_le_bytes(*case.files["hcl"][8..].first_chunk().unwrap());
    move |at| at >= usize::try_from(size).unwrap()
}

#[test]
fn every_signed_byte_counts() {
    for (id, expected) in [("az-snp-genoa", "accept"), ("az-tdx-v1", "no-collateral")] {
        let mut case = genuine(id);
        let padding = unsigned(&case);
        let is_tdx = id == "az-tdx-v1";
        for role in ["hcl", "msg", "sig", "pcrs"] {
            for at in 0..case.files[role].len() {
                // Each judgement costs a chain, and each byte of a report alone has a test of its own.
                if role == "hcl" && at >= 32 && at % 7 != 0 {
                    continue;
                }
                case.files.get_mut(role).unwrap()[at] ^= 1;
                let found = judge(&case).verdict.as_str();
                // A TDREPORT's own MAC and system fields are for its machine; the quote proves the rest.
                let tdreport = (32..32 + 1184).contains(&at);
                let free = role == "hcl" && (padding(at) || (is_tdx && tdreport));
                assert!(
                    found == "reject" || (free && found == expected),
                    "{id}: {role} byte {at:#x}: {found}"
                );
                case.files.get_mut(role).unwrap()[at] ^= 1;
            }
        }
    }
}

#[test]
fn only_genuine_pairs_pass() {
    let [snp, tdx] = ["az-snp-genoa", "az-tdx-v1"].map(genuine);
    for role in ["hcl", "msg", "sig", "pcrs"] {
        for (one, other) in [(&snp, &tdx), (&tdx, &snp)] {
            let mut mixed = one.clone();
            mixed.files.insert(role.into(), other.files[role].clone());
            assert_eq!(judge(&mixed).verdict, Verdict::Reject, "{role}");
        }
    }
}

#[test]
fn dates_of_certificates_count() {
    let case = genuine("az-snp-genoa");
    for (time, verdict) in [
        ("2015-01-01T00:00:00Z", Verdict::Reject),
        ("2026-11-22T00:00:00Z", Verdict::Accept),
        ("2060-01-01T00:00:00Z", Verdict::Reject),
    ] {
        let at = Timestamp::parse(time).unwrap();
        assert_eq!(verify(&evidence(&case), &policy(&case), None, at).verdict, verdict, "{time}");
    }
}

/// The evidence of a TEST machine with quotes of any content.
struct Made {
    hcl: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
    registers: Vec<u8>,
}

const NONCE: &[u8] = b"nonce";

fn made(banks: &[(u16, [u8; 3])], registers: &[u8]) -> Made {
    let machine = Machine::new().unwrap();
    let hcl = machine.hcl(&[7; 64], [0x5a; 48]).unwrap();
    let (message, signature) = machine.quote(NONCE, banks, registers).unwrap();
    Made { hcl, message, signature, registers: registers.to_vec() }
}

fn judge_made(made: &Made, policy: &str) -> Judgement<AzureClaims> {
    let synthetic = |name: &str| file(&format!("synthetic/{name}.der")).unwrap();
    let [vek, ask, ark] = ["vcek", "ask", "ark"].map(synthetic);
    let evidence = AzureEvidence {
        hcl: &made.hcl,
        quote: Some(QuoteParts {
            message: &made.message,
            signature: &made.signature,
            registers: &made.registers,
        }),
        vek: Some(&vek),
        issuers: Some((&ask, &ark)),
        ..AzureEvidence::default()
    };
    let policy = AzurePolicy::from_json(policy.as_bytes()).unwrap();
    let at = Timestamp::parse("2026-11-22T00:00:00Z").unwrap();
    verify(&evidence, &policy, Some(&ark), at)
}

/// A policy that names the value of PCR 4.
fn wants_pcr_4(value: u8) -> String {
    let value = format!("{value:02x}").repeat(32);
    json!({"tpm": {"nonce": "6e6f6e6365", "pcrs": {"4": value}}}).to_string()
}

#[test]
fn registers_are_known_by_the_signed_selection_alone() {
    let sixteen: Vec<u8> = (0..24).flat_map(|register| [register; 32]).collect();
    let good = made(&[(SHA256_BANK, [0xff; 3])], &sixteen);
    let judgement = judge_made(&good, &wants_pcr_4(4));
    assert_eq!(judgement.verdict, Verdict::Accept, "{judgement:#?}");
    assert!(judgement.is_test());
    assert_eq!(judgement.answer(Question::System), Outcome::Passed);
    assert_eq!(judge_made(&good, &wants_pcr_4(5)).verdict, Verdict::Reject);

    // PCR 16 and 23, which a guest resets, shown as the first five registers; and other selections.
    for (banks, values) in [
        (vec![(SHA256_BANK, [0, 0, 0x81])], vec![4; 2 * 32]),
        (vec![(SHA256_BANK, [0, 0, 0x81])], vec![4; 5 * 32]),
        (vec![(SHA256_BANK, [1, 0, 0])], vec![4; 32]),
        (vec![(SHA256_BANK, [0, 0, 0])], vec![]),
        (vec![], vec![]),
        (vec![(SHA256_BANK, [0xff; 3]), (SHA1_BANK, [0xff; 3])], sixteen.clone()),
        (vec![(SHA256_BANK, [0xff; 3]), (SHA256_BANK, [0xff; 3])], sixteen.clone()),
        (vec![(SHA1_BANK, [0xff; 3])], sixteen.clone()),
    ] {
        let judgement = judge_made(&made(&banks, &values), &wants_pcr_4(4));
        assert_eq!(judgement.verdict, Verdict::Reject, "{banks:?}");
        assert_ne!(judgement.answer(Question::System), Outcome::Passed, "{banks:?}");
    }
    // A short selection is enough for a policy that asks for no more.
    let short = made(&[(SHA256_BANK, [0x10, 0, 0])], &[4; 32]);
    let narrow = json!({"tpm": {"pcrs": {"4": "04".repeat(32)}, "pcr_selection": [4]}}).to_string();
    assert_eq!(judge_made(&short, &narrow).verdict, Verdict::Accept);
}

#[test]
fn nonces_and_user_data_are_compared_whole() {
    let values = [0; 24 * 32];
    let good = made(&[(SHA256_BANK, [0xff; 3])], &values);
    for (nonce, verdict) in [
        ("6e6f6e6365", Verdict::Accept),
        ("6e6f6e63", Verdict::Reject),
        ("6e6f6e636500", Verdict::Reject),
    ] {
        let policy = json!({"tpm": {"nonce": nonce}}).to_string();
        assert_eq!(judge_made(&good, &policy).verdict, verdict, "{nonce}");
    }
    for (data, verdict) in [("07".repeat(64), Verdict::Accept), ("08".repeat(64), Verdict::Reject)]
    {
        let policy = json!({"user_data": data}).to_string();
        assert_eq!(judge_made(&good, &policy).verdict, verdict);
    }
    let secure = judge_made(&good, r#"{"require_secure_boot": true}"#);
    assert_eq!(secure.verdict, Verdict::Accept);
    for wrong in [r#"{"pcrs": {}}"#, r#"{"snp": []}"#, r#"{"tdx": {"rtmr": [null]}}"#, "[]"] {
        assert!(AzurePolicy::from_json(wrong.as_bytes()).is_err(), "{wrong}");
    }
    let empty = judge_made(&good, r#"{"tpm": {"pcrs": {}}}"#);
    assert_eq!(empty.verdict, Verdict::Reject);
}

#[test]
fn evidence_of_other_clients_is_read() {
    let case = genuine("az-snp-genoa");
    let list = |role: &str| json!(case.files[role]);
    let text =
        |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let values: Vec<String> = case.files["pcrs"].chunks(32).map(text).collect();
    for json in [
        json!({"report": list("hcl"), "vcek": list("vek"), "quote":
            {"message": list("msg"), "signature": list("sig"), "pcrs": values}}),
        json!({"hcl_report": text(&case.files["hcl"]), "vcek": text(&case.files["vek"]), "tpm_quote":
            {"message": text(&case.files["msg"]), "signature": text(&case.files["sig"]), "pcrs": values}}),
    ] {
        let files = AzureFiles::from_json(json.to_string().as_bytes()).unwrap();
        let judgement = verify(&files.evidence(), &policy(&case), None, at(&case));
        assert_eq!(judgement.verdict, Verdict::Accept, "{judgement:#?}");
    }
    assert!(AzureFiles::from_json(b"{\"hcl_report\": \"00\"}").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn lengths_and_prefixes_never_panic(
        role in 0..4_usize, cut in 0..3000_usize, at in 0..3000_usize, value in any::<[u8; 4]>(),
    ) {
        let mut case = genuine("az-snp-genoa");
        let role = ["hcl", "msg", "sig", "pcrs"][role];
        let bytes = case.files.get_mut(role).unwrap();
        let before = bytes.clone();
        bytes.truncate(cut);
        for (offset, byte) in value.into_iter().enumerate() {
            if let Some(place) = bytes.get_mut(at + offset) {
                *place = byte;
            }
        }
        let changed = *bytes != before;
        let verdict = judge(&case).verdict;
        prop_assert!(verdict == Verdict::Reject || !changed || role == "hcl", "{}", role);
    }
}
