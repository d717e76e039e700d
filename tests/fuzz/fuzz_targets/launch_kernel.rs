//! Any bytes as a kernel, bzImage or ELF: refused, or laid out inside the memory that there is.
#![no_main]

use casemate_launch::linux::{AcpiTables, DirectBoot, Kernel};
use casemate_launch::{Bytes, Gpa, MemoryKind, MemoryRange};
use libfuzzer_sys::fuzz_target;

const MEMORY: u64 = 256 << 20;

fuzz_target!(|file: &[u8]| {
    let Ok(kernel) = Kernel::parse(&Bytes::from(file)) else { return };
    let memory = [MemoryRange { start: Gpa(0), bytes: MEMORY, kind: MemoryKind::Ram }];
    let acpi = AcpiTables { start: Gpa(0xe_0000), bytes: vec![0; 64].into() };
    let initrd = Bytes::from(vec![0; 5000]);
    let boot = DirectBoot {
        kernel: &kernel,
        initrd: Some(&initrd),
        cmdline: "console=ttyS0",
        memory: &memory,
        acpi,
        reset_code: &[0xf4],
    };
    if let Ok(plan) = boot.plan() {
        assert!(plan.imports.iter().all(|import| import.range.end() <= Gpa(MEMORY)));
    }
});
