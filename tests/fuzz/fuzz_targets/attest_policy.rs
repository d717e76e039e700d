//! Any bytes as policies: each is the same policy when a program has written it anew, and none accepts
//! forged evidence.
#![no_main]

use std::fmt::Debug;

use casemate_verify::cca::CcaPolicy;
use casemate_verify::google::GooglePolicy;
use casemate_verify::nitro::NitroPolicy;
use casemate_verify::{SnpPolicy, TdxPolicy, Timestamp, Verdict, snp, tdx};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const REPORT: &[u8] = include_bytes!("../../data/evidence/snp/oak-turin_oc/report.bin");
const QUOTE: &[u8] = include_bytes!("../../data/evidence/tdx/qvl-v4/quote.bin");
/// A byte of the measurement, in the report and in the quote.
const MEASURED: usize = 0x90;
const MRTD: usize = 48 + 136;

fn forged(evidence: &[u8], at: usize) -> Vec<u8> {
    let mut forged = evidence.to_vec();
    forged[at] ^= 1;
    forged
}

/// Reads a policy. An object is the policy, whatever order and spaces it is written with.
fn read<P: Debug + Default + PartialEq, E>(
    json: &[u8],
    from_json: impl Fn(&[u8]) -> Result<P, E>,
) -> Option<P> {
    let policy = from_json(json).ok()?;
    let value: Value = serde_json::from_slice(json).unwrap();
    let Value::Object(members) = &value else { panic!("a policy that is not an object") };
    let again = from_json(&serde_json::to_vec(&value).unwrap());
    assert_eq!(again.ok().as_ref(), Some(&policy));
    assert!(!members.values().all(Value::is_null) || policy == P::default());
    Some(policy)
}

fuzz_target!(|json: &[u8]| {
    read(json, CcaPolicy::from_json);
    read(json, GooglePolicy::from_json);
    read(json, NitroPolicy::from_json);
    if let Some(policy) = read(json, SnpPolicy::from_json) {
        let evidence = snp::SnpEvidence {
            report: &forged(REPORT, MEASURED),
            vek: include_bytes!("../../data/evidence/snp/oak-turin_oc/vek.der"),
            ask: include_bytes!("../../data/evidence/snp/roots/turin-ask.der"),
            ark: include_bytes!("../../data/evidence/snp/roots/turin-ark.der"),
            crl: None,
        };
        let judgement = snp::verify(&evidence, &policy, None, Timestamp(1_795_305_600));
        assert_eq!(judgement.verdict, Verdict::Reject);
    }
    if let Some(policy) = read(json, TdxPolicy::from_json) {
        let quote = forged(QUOTE, MRTD);
        let collateral = include_bytes!("../../data/evidence/tdx/qvl-v4/collateral.json");
        let evidence =
            tdx::TdxEvidence { quote: &quote, collateral: Some(collateral), event_log: None };
        let judgement = tdx::verify(&evidence, &policy, None, Timestamp(1_751_624_655));
        assert_eq!(judgement.verdict, Verdict::Reject);
    }
});
