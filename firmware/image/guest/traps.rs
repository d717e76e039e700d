//! Every exception and interrupt is fatal, whoever caused it. There is one handler, on a stack of
//! its own.

use core::arch::{asm, naked_asm};

use casemate_firmware_logic::fatal::Fatal;

/// Descriptors of the table: the architecture's exceptions and those that a host can inject.
const VECTORS: usize = 256;

/// The tables that the processor reads. All zeroes is a valid value.
#[repr(C, align(16))]
pub struct Tables {
    stack: [u8; 1024],
    idt: [[u64; 2]; VECTORS],
    gdt: [u64; 6],
    tss: [u32; 26],
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

#[unsafe(naked)]
unsafe extern "C" fn trap() {
    naked_asm!("cld", "and rsp, -16", "call {fatal}", fatal = sym handler)
}

extern "C" fn handler() -> ! {
    crate::stop(Fatal::Trap)
}

impl Tables {
    /// Fills the tables and makes the processor use them, until the kernel has its own.
    pub fn load(&'static mut self) {
        let stack = &raw const self.stack as u64 + size_of_val(&self.stack) as u64;
        // IST 1; no I/O map.
        self.tss[9] = stack as u32;
        self.tss[10] = (stack >> 32) as u32;
        self.tss[25] = 104 << 16;
        let tss = &raw const self.tss as u64;
        self.gdt = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
            tss >> 32,
        ];
        let entry = trap as *const () as u64;
        // An interrupt gate to CODE64, on IST 1 (AMD64 APM volume 2, 4.8.4).
        let gate =
            entry & 0xffff | 0x10 << 16 | 1 << 32 | 0x8e << 40 | (entry >> 16 & 0xffff) << 48;
        self.idt = [[gate, entry >> 32]; VECTORS];
        let gdt = Pointer { limit: 47, base: &raw const self.gdt as u64 };
        let idt = Pointer { limit: 16 * VECTORS as u16 - 1, base: &raw const self.idt as u64 };
        // SAFETY: the tables are complete, stay where they are (`'static`), and are not written any
        // more; the selectors in use, 0x10 and 0x18, describe the same as before.
        unsafe {
            asm!("lgdt [{}]", in(reg) &gdt, options(readonly, nostack, preserves_flags));
            asm!("lidt [{}]", in(reg) &idt, options(readonly, nostack, preserves_flags));
            asm!("ltr {0:x}", in(reg) 0x20, options(nostack, preserves_flags));
        }
    }
}
