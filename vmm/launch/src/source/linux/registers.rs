//! The boot processor as the two boot protocols want it.
//!
//! Attributes are in the VMSA's packed form, see [`Segment`].

use crate::{Gpa, InitialVcpu, Segment};

const CODE_64: u16 = 0xa9b;
const CODE_32: u16 = 0xc9b;
const DATA: u16 = 0xc93;
const TSS_BUSY: u16 = 0x08b;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The reset values (AMD64 APM volume 2, table 14-1).
const DR6: u64 = 0xffff_0ff0;
const DR7: u64 = 0x400;
const G_PAT: u64 = 0x0007_0406_0007_0406;
const MXCSR: u32 = 0x1f80;
const X87_FCW: u16 = 0x37f;

/// __BOOT_CS and __BOOT_DS of the Linux boot protocol.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// The GDT that goes with [`linux64`]: null, unused, code, data.
pub(super) fn gdt() -> Vec<u8> {
    [0, 0, descriptor(CODE_64), descriptor(DATA)].into_iter().flat_map(u64::to_le_bytes).collect()
}

/// A flat descriptor: base 0, limit 4 GiB.
fn descriptor(attributes: u16) -> u64 {
    let attributes = u64::from(attributes);
    0xffff | 0xf << 48 | (attributes & 0xff) << 40 | (attributes >> 8) << 52
}

fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { selector, attributes, limit: u32::MAX, base: 0 }
}

fn common(data: Segment) -> InitialVcpu {
    InitialVcpu {
        es: data,
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        tr: Segment { selector: 0, attributes: TSS_BUSY, limit: 0x67, base: 0 },
        dr6: DR6,
        dr7: DR7,
        rflags: 2,
        g_pat: G_PAT,
        xcr0: 1,
        mxcsr: MXCSR,
        x87_fcw: X87_FCW,
        ..InitialVcpu::default()
    }
}

/// The 64-bit boot protocol (Documentation/arch/x86/boot.rst): long mode, identity mapping, RSI
/// points to the zero page.
pub(super) fn linux64(entry: Gpa, zero_page: Gpa, gdt: Gpa, page_tables: Gpa) -> InitialVcpu {
    InitialVcpu {
        cs: flat(BOOT_CS, CODE_64),
        gdtr: Segment { limit: 31, base: gdt.0, ..Segment::default() },
        efer: EFER_LME | EFER_LMA,
        cr0: CR0_PG | CR0_ET | CR0_PE,
        cr3: page_tables.0,
        cr4: CR4_PAE,
        rip: entry.0,
        rsi: zero_page.0,
        ..common(flat(BOOT_DS, DATA))
    }
}

/// PVH (Xen's docs/misc/pvh.pandoc): 32-bit protected mode without paging, EBX points to the
/// start info.
pub(super) fn pvh(entry: Gpa, start_info: Gpa) -> InitialVcpu {
    InitialVcpu {
        cs: flat(0, CODE_32),
        cr0: CR0_ET | CR0_PE,
        rip: entry.0,
        rbx: start_info.0,
        ..common(flat(0, DATA))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_ones() {
        assert_eq!(descriptor(CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(gdt().len(), 32);
    }
}
