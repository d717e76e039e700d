//! TDVF metadata, and the plan, HOB and MRTD that follow from it.

#![no_main]

use casemate_launch::TdxPolicy;
use casemate_launch::tdvf::{hob, plan};
use casemate_launch::tdx::{PageOrder, mrtd};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    let Ok(memory) = hob::q35_memory(4 << 30) else { return };
    if let Ok(plan) = plan(image, &memory, 1, TdxPolicy::new(0)) {
        // Up to 4 GiB of pages take too long for a fuzzer.
        let pages: u64 = plan.imports.iter().map(|import| import.range.pages().0).sum();
        if pages < 4096 {
            let _ = mrtd(&plan, PageOrder::TwoPass);
        }
    }
});
