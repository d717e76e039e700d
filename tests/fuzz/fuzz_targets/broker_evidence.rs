//! Any JSON as evidence: read or refused, and what is read is written and read alike.
#![no_main]

use casemate_broker::GuestEvidence;
use casemate_protocol::Evidence;
use kbs_types::Tee;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    for tee in [Tee::AzSnpVtpm, Tee::AzTdxVtpm] {
        let _ = GuestEvidence::from_json(tee, &json);
    }
    for tee in [Tee::Snp, Tee::Tdx] {
        if let Ok(evidence) = Evidence::from_json(tee, &json) {
            let again = Evidence::from_json(tee, &evidence.to_json()).expect("our own form");
            assert_eq!(evidence, again);
        }
    }
});
