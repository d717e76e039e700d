//! Any bytes as a certificate table, as a certificate and as a revocation list.
#![no_main]

use casemate_verify::snp::{CertificateTable, SnpEvidence, chain_for, verify};
use casemate_verify::{SnpPolicy, Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

const VEK: &[u8] = include_bytes!("../../data/evidence/snp/oak-turin_oc/vek.der");

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = CertificateTable::parse(bytes) {
        judge(table.vcek.or(table.vlek).unwrap_or_default(), table.crl);
    }
    judge(bytes, None);
    judge(VEK, Some(bytes));
});

fn judge(vek: &[u8], crl: Option<&[u8]>) {
    let (ask, ark) = chain_for(vek).unwrap_or_default();
    let evidence = SnpEvidence {
        report: include_bytes!("../../data/evidence/snp/oak-turin_oc/report.bin"),
        vek,
        ask,
        ark,
        crl,
    };
    let judgement = verify(&evidence, &SnpPolicy::default(), None, Timestamp(1_795_305_600));
    // A PEM form of the genuine certificate may be found; another certificate may not. There is no
    // genuine revocation list among the seeds.
    let genuine = vek == VEK || vek.starts_with(b"-----BEGIN");
    assert!(judgement.verdict == Verdict::Reject || (genuine && crl.is_none()));
}
