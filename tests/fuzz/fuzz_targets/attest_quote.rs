//! Any bytes as a quote with genuine collateral: what is accepted says what the genuine quote says.
#![no_main]

use casemate_verify::tdx::{TdxEvidence, verify};
use casemate_verify::{TdxPolicy, Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

const GENUINE: &[u8] = include_bytes!("../../data/evidence/tdx/qvl-v4/quote.bin");
/// Header and body: what the attestation key signed.
const SIGNED: usize = 48 + 584;

fuzz_target!(|quote: &[u8]| {
    let evidence = TdxEvidence {
        quote,
        collateral: Some(include_bytes!("../../data/evidence/tdx/qvl-v4/collateral.json")),
        event_log: None,
    };
    let judgement = verify(&evidence, &TdxPolicy::default(), None, Timestamp(1_751_624_655));
    assert!(judgement.verdict == Verdict::Reject || quote.get(..SIGNED) == GENUINE.get(..SIGNED));
});
