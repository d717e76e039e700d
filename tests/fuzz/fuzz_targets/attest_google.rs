//! Any bytes as an attestation of Google's virtual TPM, as the certificate between its key and a root, and as a
//! policy.
#![no_main]

use casemate_verify::google::{GooglePolicy, verify};
use casemate_verify::{Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

const GENUINE: &[u8] =
    include_bytes!("../../data/evidence/cloud/gcp-gce-cos-85-nonce9009/attestation.pb");
const ISSUER: &[u8] =
    include_bytes!("../../data/evidence/cloud/gcp-gce-cos-85-nonce9009/ak-intermediate.crt");

fuzz_target!(|bytes: &[u8]| {
    let at = Timestamp(1_795_305_600);
    let _ = GooglePolicy::from_json(bytes);
    let judgement = verify(GENUINE, &[bytes], &GooglePolicy::default(), at);
    assert!(judgement.verdict == Verdict::Reject || bytes == ISSUER || bytes.starts_with(b"-----"));
    // Parts that nothing signs may differ; the claims may not.
    let judgement = verify(bytes, &[ISSUER], &GooglePolicy::default(), at);
    if judgement.verdict == Verdict::Accept {
        let genuine = verify(GENUINE, &[ISSUER], &GooglePolicy::default(), at);
        assert_eq!(judgement.claims, genuine.claims);
    }
});
