//! Any registers in the exits of confidential guests: conversions are ranges of pages within the
//! guest's addresses, last words only what prints.
#![no_main]

use casemate_kvm::exit::{MapGpaRange, SevTermination, TdxFatal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u64; 6], u32, Vec<u64>)| {
    let (arguments, width, data) = input;
    if let Ok(MapGpaRange { gpa, size, .. }) = MapGpaRange::decode(&arguments, width) {
        assert!(size > 0 && gpa % 4096 == 0 && size % 4096 == 0);
        assert!(width > 63 || gpa.checked_add(size).is_some_and(|end| end <= 1 << width));
    }
    let fatal = TdxFatal::decode(&data);
    assert!(fatal.message.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    for value in data {
        assert!(!SevTermination::decode(value).to_string().is_empty());
    }
});
