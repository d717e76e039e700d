//! What a kernel finds when it starts, read as Linux reads it (Documentation/arch/x86/boot.rst and
//! zero-page.rst); [`handed_over`](crate::handed_over) has every byte of it.

use casemate_firmware_logic::layout::{CPUID, GRANULE, HANDOFF, IMAGE, KERNEL, SECRETS};
use casemate_launch::PlatformKind;
use casemate_launch::firmware::Flags;
use casemate_launch::loader_window::Payloads;
use unicorn_engine::RegisterX86;

use crate::handed_over::{self, Guest};
use crate::harness::Run;

/// What a range of an e820 table is.
const RAM: u64 = 1;
const ACPI: u64 = 3;

const PAGE_BYTES: usize = 4096;

struct Given<'a> {
    run: &'a Run,
}

/// Holds what the kernel of a guest was given against what it was to be given.
pub(crate) fn check(run: &Run, payloads: &Payloads) {
    let given = Given { run };
    given.registers();
    given.payloads(payloads);
    given.memory_map(payloads.memory);
    if run.machine().platform == PlatformKind::Snp {
        given.snp_pages();
    }
    handed_over::compare(run, &Guest::of(payloads, Flags::default()));
}

impl Given<'_> {
    fn number(&self, address: u64, size: u64) -> u64 {
        let bytes = self.run.memory(address, size);
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// A field of the boot parameters.
    fn parameter(&self, offset: u64, size: u64) -> u64 {
        self.number(HANDOFF + offset, size)
    }

    fn registers(&self) {
        let register = |register| self.run.register(register);
        assert_eq!(register(RegisterX86::RSI), HANDOFF, "the boot parameters");
        assert_eq!(register(RegisterX86::RAX), KERNEL + 0x200, "where the jump led");
        {
            use RegisterX86::{R8, R9, R10, R11, R12, R13, R14, R15, RBP, RBX, RCX, RDI, RDX};
            let others = [RBX, RCX, RDX, RDI, RBP, R8, R9, R10, R11, R12, R13, R14, R15];
            assert_eq!(others.map(register), [0; 13], "nothing of the firmware's is left");
        }
        let segments = [RegisterX86::CS, RegisterX86::DS, RegisterX86::ES, RegisterX86::SS];
        assert_eq!(segments.map(register), [0x10, 0x18, 0x18, 0x18]);
        let (interrupts, direction) = (1 << 9, 1 << 10);
        assert_eq!(register(RegisterX86::RFLAGS) & (interrupts | direction), 0);
        if self.run.machine().platform == PlatformKind::Tdx {
            let machine_check = 1 << 6;
            assert_ne!(register(RegisterX86::CR4) & machine_check, 0, "it must stay");
        }
    }

    fn payloads(&self, payloads: &Payloads) {
        let memory = |address, size: usize| self.run.memory(address, size as u64);
        let setup = (usize::from(payloads.kernel[0x1f1]) + 1) * 512;
        let kernel = &payloads.kernel[setup..];
        assert!(memory(KERNEL, kernel.len()) == *kernel, "another kernel");
        let initrd = self.parameter(0x218, 4);
        assert_eq!(self.parameter(0x21c, 4), payloads.initrd.len() as u64);
        assert!(memory(initrd, payloads.initrd.len()) == *payloads.initrd, "another initrd");
        let line = memory(self.parameter(0x228, 4), payloads.cmdline.len() + 1);
        assert_eq!(line, [&payloads.cmdline, &b"\0"[..]].concat());
        assert_eq!(memory(self.parameter(0x70, 8), 8), *b"RSD PTR ");
    }

    /// All memory is there, and each page of it either the guest's own or to be accepted.
    fn memory_map(&self, memory: u64) {
        let waiting = self.waiting();
        let mut bytes = 0;
        for entry in 0..self.parameter(0x1e8, 1) {
            let at = HANDOFF + 0x2d0 + 20 * entry;
            let (start, size) = (self.number(at, 8), self.number(at + 8, 8));
            let kind = self.number(at + 16, 4);
            let legacy = kind == 2 && start < 1 << 20;
            bytes += if kind == RAM || kind == ACPI || legacy { size } else { 0 };
            if kind != RAM && kind != ACPI && !legacy {
                continue;
            }
            for page in (start..start + size).step_by(PAGE_BYTES) {
                let own = self.run.machine().is_accepted(page);
                let waits = kind == RAM && waiting(page);
                assert!(own != waits, "{page:#x}, of kind {kind}: {own}, {waits}");
            }
        }
        assert_eq!(bytes, memory);
    }

    /// The table of unaccepted memory, by way of EFI's tables.
    fn waiting(&self) -> impl Fn(u64) -> bool + use<> {
        let mut bitmap = Vec::new();
        if self.run.machine().platform == PlatformKind::Plain {
            assert_eq!(self.parameter(0x1c0, 4), 0);
        } else {
            assert_eq!(self.parameter(0x1c0, 4).to_le_bytes()[..4], *b"EL64");
            let system = self.parameter(0x1c4, 4);
            assert_eq!(self.run.memory(system, 8), *b"IBI SYST");
            let tables = self.number(system + 112, 8);
            let table = self.number(tables + 16, 8);
            assert_eq!(self.number(table + 4, 4), GRANULE);
            bitmap = self.run.memory(table + 24, self.number(table + 16, 8));
        }
        move |page| {
            let granule = page / GRANULE;
            let byte = bitmap.get(usize::try_from(granule / 8).unwrap());
            byte.is_some_and(|byte| byte >> (granule % 8) & 1 == 1)
        }
    }

    /// Secrets and CPUID pages, by way of `setup_data`.
    fn snp_pages(&self) {
        let data = self.parameter(0x250, 8);
        assert_eq!((self.number(data, 8), self.number(data + 8, 4)), (0, 7), "SETUP_CC_BLOB");
        let blob = self.number(data + 16, 4);
        assert_eq!(self.run.memory(blob, 4), *b"AMDE");
        assert_eq!((self.number(blob + 8, 8), self.number(blob + 24, 8)), (SECRETS, CPUID));
    }
}

/// Accepted pages outside of the image that were not read since. At launch none has been.
pub(crate) fn untouched(run: &Run) -> usize {
    let pages = (0..IMAGE).step_by(PAGE_BYTES);
    pages
        .filter(|page| run.machine().is_accepted(*page) && !run.machine().is_touched(*page))
        .count()
}
