//! Any bytes as collateral, and any bytes as a policy, for a genuine quote.
#![no_main]

use casemate_verify::tdx::{TdxEvidence, verify};
use casemate_verify::{SnpPolicy, TcbStatus, TdxPolicy, Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = SnpPolicy::from_json(bytes);
    let policy = TdxPolicy::from_json(bytes).unwrap_or_default();
    let evidence = TdxEvidence {
        quote: include_bytes!("../../data/evidence/tdx/qvl-v4/quote.bin"),
        collateral: Some(bytes),
        event_log: None,
    };
    let judgement = verify(&evidence, &policy, None, Timestamp(1_751_624_655));
    // Layout of the JSON may differ; the signed texts in it may not, so the status is the genuine one.
    if judgement.verdict != Verdict::Reject {
        let status = judgement.claims.and_then(|claims| claims.tcb_status);
        assert_eq!(status, Some(TcbStatus::UpToDate));
    }
});
