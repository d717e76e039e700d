//! HOB lists. What is read is written again, byte for byte.

#![no_main]

use casemate_launch::tdvf::hob::{self, TdHob};
use casemate_launch::{Gpa, GpaRange};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let start = Gpa(0x80_9000);
    if let Ok(resources) = hob::read(bytes, start)
        && let Ok(section) = GpaRange::from_bytes(start, 1 << 24)
        && let Ok(hob) = TdHob::build(section, &resources)
    {
        assert_eq!(Some(hob.bytes()), bytes.get(..hob.bytes().len()));
    }
});
