//! Conditions on the platform of an SEV-SNP guest, by real reports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::evidence::{Inputs, case};
use casemate_verify::snp::{self, SnpEvidence};
use casemate_verify::{CheckName, SnpPolicy, Timestamp, Verdict};
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
