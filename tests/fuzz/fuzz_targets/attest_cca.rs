//! Any bytes as a token of Arm CCA, as its platform's key and as a policy: what is accepted says what a
//! genuine token says.
#![no_main]

use casemate_verify::Verdict;
use casemate_verify::cca::{CcaPolicy, PlatformKey, verify};
use libfuzzer_sys::fuzz_target;

/// The tokens that this key signed.
const GENUINE: [&[u8]; 2] = [
    include_bytes!("../../data/evidence/cloud/cca-tf-rmm/token.cbor"),
    include_bytes!("../../data/evidence/cloud/cca-profile-2023/token.cbor"),
];
const KEY: &[u8] = include_bytes!("../../data/evidence/cloud/cca-tf-rmm/platform-key.jwk");

fuzz_target!(|bytes: &[u8]| {
    let _ = CcaPolicy::from_json(bytes);
    let genuine_key = PlatformKey::from_jwk(KEY).expect("a key");
    if let Ok(key) = PlatformKey::from_jwk(bytes) {
        let judgement = verify(GENUINE[0], Some(&key), &CcaPolicy::default());
        assert!(judgement.verdict == Verdict::Reject || key == genuine_key);
    }
    let judge = |bytes| verify(bytes, Some(&genuine_key), &CcaPolicy::default());
    let judgement = judge(bytes);
    // Headers that no signature covers may differ; the claims may not.
    if judgement.verdict != Verdict::Reject {
        assert!(GENUINE.iter().any(|genuine| judge(genuine).claims == judgement.claims));
    }
});
