//! Any bytes as a report beside genuine certificates: only the genuine report is accepted.
#![no_main]

use casemate_verify::snp::{SnpEvidence, verify};
use casemate_verify::{SnpPolicy, Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

const GENUINE: &[u8] = include_bytes!("../../data/evidence/snp/oak-turin_oc/report.bin");

fuzz_target!(|report: &[u8]| {
    let evidence = SnpEvidence {
        report,
        vek: include_bytes!("../../data/evidence/snp/oak-turin_oc/vek.der"),
        ask: include_bytes!("../../data/evidence/snp/roots/turin-ask.der"),
        ark: include_bytes!("../../data/evidence/snp/roots/turin-ark.der"),
        crl: None,
    };
    let judgement = verify(&evidence, &SnpPolicy::default(), None, Timestamp(1_795_305_600));
    assert!(judgement.verdict == Verdict::Reject || report == GENUINE);
});
