//! Any bytes as a paravisor's report, as a quote, as registers and as JSON beside the genuine rest.
#![no_main]

use casemate_verify::azure::{AzureEvidence, AzureFiles, AzurePolicy, verify};
use casemate_verify::tpm::QuoteParts;
use casemate_verify::{Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

const HCL: &[u8] = include_bytes!("../../data/evidence/cloud/az-snp-genoa/hcl-report.bin");
const MESSAGE: &[u8] = include_bytes!("../../data/evidence/cloud/az-snp-genoa/quote.msg");
const SIGNATURE: &[u8] = include_bytes!("../../data/evidence/cloud/az-snp-genoa/quote.sig");
const REGISTERS: &[u8] = include_bytes!("../../data/evidence/cloud/az-snp-genoa/pcrs.bin");
const VEK: &[u8] = include_bytes!("../../data/evidence/cloud/az-snp-genoa/vek.der");
/// Bytes of the report that something signed or hashed; the rest is padding.
const BOUND: usize = 2436;

fuzz_target!(|bytes: &[u8]| {
    let _ = AzurePolicy::from_json(bytes);
    if let Ok(files) = AzureFiles::from_json(bytes) {
        judge(&files.evidence());
    }
    let quote = QuoteParts { message: MESSAGE, signature: SIGNATURE, registers: REGISTERS };
    let genuine =
        AzureEvidence { hcl: HCL, quote: Some(quote), vek: Some(VEK), ..AzureEvidence::default() };
    let accepted = judge(&AzureEvidence { hcl: bytes, ..genuine });
    assert!(!accepted || bytes.get(..BOUND) == HCL.get(..BOUND));
    for (quote, original) in [
        (QuoteParts { message: bytes, ..quote }, MESSAGE),
        (QuoteParts { signature: bytes, ..quote }, SIGNATURE),
        (QuoteParts { registers: bytes, ..quote }, REGISTERS),
    ] {
        let accepted = judge(&AzureEvidence { quote: Some(quote), ..genuine });
        assert!(!accepted || bytes == original);
    }
});

fn judge(evidence: &AzureEvidence<'_>) -> bool {
    let at = Timestamp(1_795_305_600);
    verify(evidence, &AzurePolicy::strict(), None, at).verdict != Verdict::Reject
}
