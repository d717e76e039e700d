//! Conditions on the platform of a guest, by real reports and quotes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::evidence::{Inputs, case, file};
use casemate_verify::snp::{self, SnpEvidence};
use casemate_verify::tdx::{self, TdxClaims, TdxEvidence};
use casemate_verify::{CheckName, Judgement, Outcome, SnpPolicy, TdxPolicy, Timestamp, Verdict};
use serde_json::{Value, json};

/// The names of the checks that fail for a genuine report by a policy of one key.
fn failed(id: &str, key: &str, value: &Value) -> Vec<&'static str> {
    let Inputs::Snp(inputs) = case(id).unwrap().inputs else { unreachable!("an SEV-SNP case") };
    let policy = SnpPolicy::from_json(json!({ key: value }).to_string().as_bytes()).unwrap();
    let (report, vek) = (&inputs.report[..], &inputs.vek[..]);
    let (ask, ark) = (&inputs.ask[..], &inputs.ark[..]);
    let evidence = SnpEvidence { report, vek, ask, ark, crl: None };
    let test_root = inputs.test_root.then_some(ark);
    let at = Timestamp::parse("2026-11-22T00:00:00Z").unwrap();
    let judgement = snp::verify(&evidence, &policy, test_root, at);
    let failed: Vec<_> = judgement.failed().map(CheckName::as_str).collect();
    assert_eq!(failed.is_empty(), judgement.verdict == Verdict::Accept, "{judgement:#?}");
    failed
}

#[test]
fn each_condition_accepts_and_refuses() {
    let milan = "snp-oak-milan_oc_release";
    let turin = "snp-oak-turin_oc";
    let claims = |id: &str| {
        let Inputs::Snp(inputs) = case(id).unwrap().inputs else { unreachable!() };
        let report = snp::Report::parse(&inputs.report).unwrap().clone();
        let chip: String = report.chip_id.iter().map(|byte| format!("{byte:02x}")).collect();
        (chip, report)
    };
    let (chip, _) = claims(milan);
    let zeros = |bytes: usize| json!("00".repeat(bytes));
    for (id, key, good, bad, check) in [
        (milan, "products", json!(["Milan"]), json!(["Genoa", "Turin"]), "product"),
        (turin, "products", json!(["Genoa", "Turin"]), json!([]), "product"),
        (milan, "chip_ids", json!(chip), zeros(64), "chip"),
        (milan, "family_ids", zeros(16), json!("01".repeat(16)), "family-id"),
        (milan, "image_ids", zeros(16), json!([]), "image-id"),
        (milan, "min_committed_tcb", json!({"bl": 0}), json!({"bl": 255}), "tcb-committed"),
        (milan, "min_launch_tcb", json!({"ucode": 0}), json!({"ucode": 255}), "tcb-launch"),
        (milan, "min_launch_tcb", json!({}), json!({"fmc": 0}), "tcb-launch"),
        (turin, "mitigations", json!(0), json!(1_u64 << 63), "mitigations"),
    ] {
        assert_eq!(failed(id, key, &good), [""; 0], "{id} {key}");
        assert_eq!(failed(id, key, &bad), [check], "{id} {key}");
    }
    // A report that does not have the vector fulfils no condition on it.
    assert_eq!(failed(milan, "mitigations", &json!(0)), ["mitigations"]);
    let info = claims(milan).1.platform_info.get();
    for (bit, name) in ["smt", "tsme", "ecc", "rapl_disabled", "ciphertext_hiding", "alias_check"]
        .iter()
        .enumerate()
    {
        let set = info >> bit & 1 == 1;
        assert_eq!(failed(milan, "platform_info", &json!({ *name: set })), [""; 0], "{name}");
        let other = failed(milan, "platform_info", &json!({ *name: !set }));
        assert_eq!(other, ["platform-info"], "{name}");
    }
}

#[test]
fn a_later_version_says_that_this_program_is_older() {
    let found = failed("snp-synth-version-6", "vmpl", &json!([0]));
    assert!(found.contains(&"newer-than-this-program") && found.contains(&"version"), "{found:?}");
}

/// A genuine quote, judged with its collateral if there is some, by a policy of these keys.
fn judge_quote(id: &str, policy: &Value) -> Judgement<TdxClaims> {
    let quote = file(&format!("tdx/{id}/quote.bin")).unwrap();
    let collateral = file(&format!("tdx/{id}/collateral.json")).ok();
    let policy = TdxPolicy::from_json(policy.to_string().as_bytes()).unwrap();
    let evidence =
        TdxEvidence { quote: &quote, collateral: collateral.as_deref(), event_log: None };
    tdx::verify(&evidence, &policy, None, Timestamp(1_751_624_655))
}

/// What came of one check.
fn outcome(judgement: &Judgement<TdxClaims>, name: &str) -> Option<Outcome> {
    let found = judgement.checks.iter().find(|check| check.name.as_str() == name);
    found.map(|check| check.result)
}

#[test]
fn older_evaluations_of_a_platform_are_refused() {
    let with = |number: u32| {
        let policy = json!({"min_tcb_evaluation_data_number": number});
        let judgement = judge_quote("qvl-v4", &policy);
        (judgement.verdict, outcome(&judgement, "tcb-evaluation"))
    };
    let claims = judge_quote("qvl-v4", &json!({})).claims.unwrap();
    let found = claims.tcb_evaluation_data_number.unwrap();
    assert_eq!(with(found), (Verdict::Accept, Some(Outcome::Passed)));
    assert_eq!(with(found + 1), (Verdict::Reject, Some(Outcome::Failed)));
    // Without collateral nobody knows.
    let policy = json!({"min_tcb_evaluation_data_number": 0});
    let judgement = judge_quote("gotdx-v5", &policy);
    assert_eq!(outcome(&judgement, "tcb-evaluation"), Some(Outcome::NotDone));
}

#[test]
fn bits_that_a_policy_does_not_allow_are_refused() {
    let claims = judge_quote("qvl-v4", &json!({})).claims.unwrap();
    for (key, value, check) in [
        ("allowed_xfam", claims.xfam, "xfam"),
        ("allowed_td_attributes", claims.td_attributes, "td-attributes"),
    ] {
        let with = |value: Value| {
            let judgement = judge_quote("qvl-v4", &json!({ key: value }));
            (judgement.verdict, outcome(&judgement, check))
        };
        let passed = (Verdict::Accept, Some(Outcome::Passed));
        assert_eq!(with(json!(value)), passed, "{key}");
        assert_eq!(with(json!("ff".repeat(8))), passed, "{key}");
        assert_eq!(with(json!("00".repeat(8))), (Verdict::Reject, Some(Outcome::Failed)), "{key}");
    }
    // A list and a mask both hold.
    let both = json!({"xfam": claims.xfam, "allowed_xfam": "00".repeat(8)});
    assert_eq!(judge_quote("qvl-v4", &both).verdict, Verdict::Reject);
}

#[test]
fn a_bound_service_domain_is_known_only_to_version_1_5() {
    let found = |id: &str, policy: Value| outcome(&judge_quote(id, &policy), "mrservicetd");
    assert_eq!(found("gotdx-v5", json!({})), Some(Outcome::Passed));
    assert_eq!(found("gotdx-v5", json!({"mrservicetd": "00".repeat(48)})), Some(Outcome::Passed));
    assert_eq!(found("gotdx-v5", json!({"mrservicetd": "01".repeat(48)})), Some(Outcome::Failed));
    assert_eq!(found("gotdx-v5", json!({"mrservicetd": []})), Some(Outcome::Failed));
    assert_eq!(found("qvl-v4", json!({})), None);
    assert_eq!(found("qvl-v4", json!({"mrservicetd": "00".repeat(48)})), Some(Outcome::Failed));
}
