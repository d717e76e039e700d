//! Any bytes as a document of a Nitro enclave, and as a policy: what is accepted says what
//! the genuine document says.
#![no_main]

use casemate_verify::nitro::{NitroPolicy, verify};
use casemate_verify::{Timestamp, Verdict};
use libfuzzer_sys::fuzz_target;

const GENUINE: &[u8] = include_bytes!("../../data/evidence/cloud/nitro-dstack/document.cbor");

fuzz_target!(|bytes: &[u8]| {
    let policy = NitroPolicy::from_json(bytes).unwrap_or_default();
    let at = Timestamp(1_766_678_700);
    let _ = verify(GENUINE, &policy, at);
    let judgement = verify(bytes, &NitroPolicy::default(), at);
    // Headers that no signature covers may differ; the claims may not.
    if judgement.verdict != Verdict::Reject {
        let genuine = verify(GENUINE, &NitroPolicy::default(), at);
        assert_eq!(judgement.claims, genuine.claims);
    }
});
