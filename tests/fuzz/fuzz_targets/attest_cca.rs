//! Any bytes as a token of Arm CCA, as its platform's key and as a policy: what is accepted is the genuine token.
#![no_main]

use casemate_verify::Verdict;
use casemate_verify::cca::{CcaPolicy, PlatformKey, verify};
use libfuzzer_sys::fuzz_target;

const GENUINE: &[u8] = include_bytes!("../../data/evidence/cloud/cca-tf-rmm/token.cbor");
const KEY: &[u8] = include_bytes!("../../data/evidence/cloud/cca-tf-rmm/platform-key.jwk");

fuzz_target!(|bytes: &[u8]| {
    let _ = CcaPolicy::from_json(bytes);
    let genuine_key = PlatformKey::from_jwk(KEY).expect("a key");
    if let Ok(key) = PlatformKey::from_jwk(bytes) {
        let judgement = verify(GENUINE, Some(&key), &CcaPolicy::default());
        assert!(judgement.verdict == Verdict::Reject || key == genuine_key);
    }
    let judgement = verify(bytes, Some(&genuine_key), &CcaPolicy::default());
    assert!(judgement.verdict == Verdict::Reject || bytes == GENUINE);
});
