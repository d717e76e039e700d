//! Any bytes as a bzImage: its payload is part of it, or it is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    if let Ok(payload) = casemate_lab::kernel::payload(image) {
        assert!(payload.len() <= image.len());
    }
});
