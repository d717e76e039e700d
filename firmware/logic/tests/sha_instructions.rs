//! SHA-256 by the processor's instructions is the same SHA-256.

#![allow(unsafe_code, reason = "whether the processor has the instructions is seen at run time")]

use casemate_firmware_logic::sha256::{compress_by_instructions, digest, digest_by};
use proptest::prelude::*;
use sha2::Digest as _;

/// Nothing on a processor that has no such instructions: this cannot be tried there.
fn by_instructions(data: &[u8]) -> Option<[u8; 32]> {
    if !std::is_x86_feature_detected!("sha") {
        eprintln!("SKIPPED: this processor has no instructions for SHA-256");
        return None;
    }
    // SAFETY: it has them, and no processor has them without SSE4.1.
    Some(digest_by(|state, blocks| unsafe { compress_by_instructions(state, blocks) }, data))
}

proptest! {
    #[test]
    fn the_same_as_without_them_and_as_another_implementation(data: Vec<u8>) {
        if let Some(ours) = by_instructions(&data) {
            prop_assert_eq!(ours, digest(&data));
            prop_assert_eq!(ours, <[u8; 32]>::from(sha2::Sha256::digest(&data)));
        }
    }
}

#[test]
fn every_length_of_the_last_blocks() {
    let data: Vec<u8> = (0..=255).collect();
    for length in 0..data.len() {
        if let Some(ours) = by_instructions(&data[..length]) {
            assert_eq!(ours, digest(&data[..length]), "{length}");
        }
    }
}
