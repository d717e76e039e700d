//! From a VMSA page back to the registers that make KVM produce it.

use crate::plan::VmsaPage;
use crate::{InitialVcpu, Segment};

/// EFER.SVME, which KVM sets in every VMSA.
const EFER_SVME: u64 = 1 << 12;
/// CR4.MCE, which KVM sets in every VMSA.
const CR4_MCE: u64 = 1 << 6;

/// Why KVM cannot produce a VMSA page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "byte {offset:#x} of the VMSA is {found:#04x}, where KVM always has {kvm:#04x}: a register that \
     KVM sets itself or does not carry over"
)]
pub struct VmsaError {
    /// Offset in the page.
    pub offset: usize,
    /// What the file has there.
    pub found: u8,
    /// What KVM would have there.
    pub kvm: u8,
}

/// The registers, and SEV_FEATURES, with which KVM makes exactly this page.
pub(crate) fn registers(page: &VmsaPage) -> Result<(InitialVcpu, u64), VmsaError> {
    let r = |at| u64::from_le_bytes(bytes(page, at));
    let segment = |at| Segment {
        selector: u16::from_le_bytes(bytes(page, at)),
        attributes: u16::from_le_bytes(bytes(page, at + 2)),
        limit: u32::from_le_bytes(bytes(page, at + 4)),
        base: r(at + 8),
    };
    let vcpu = InitialVcpu {
        es: segment(0x00),
        cs: segment(0x10),
        ss: segment(0x20),
        ds: segment(0x30),
        fs: segment(0x40),
        gs: segment(0x50),
        gdtr: segment(0x60),
        ldtr: segment(0x70),
        idtr: segment(0x80),
        tr: segment(0x90),
        efer: r(0xd0) & !EFER_SVME,
        cr4: r(0x148) & !CR4_MCE,
        cr3: r(0x150),
        cr0: r(0x158),
        dr7: r(0x160),
        dr6: r(0x168),
        rflags: r(0x170),
        rip: r(0x178),
        rsp: r(0x1d8),
        rax: r(0x1f8),
        g_pat: r(0x268),
        rcx: r(0x308),
        rdx: r(0x310),
        rbx: r(0x318),
        rbp: r(0x328),
        rsi: r(0x330),
        rdi: r(0x338),
        r8: r(0x340),
        r9: r(0x348),
        r10: r(0x350),
        r11: r(0x358),
        r12: r(0x360),
        r13: r(0x368),
        r14: r(0x370),
        r15: r(0x378),
        xcr0: r(0x3e8),
        mxcsr: u32::from_le_bytes(bytes(page, 0x408)),
        x87_fcw: u16::from_le_bytes(bytes(page, 0x410)),
        waits_for_sipi: false,
    };
    let features = r(0x3b0);
    let made = VmsaPage::new(&vcpu, features | 1);
    let differ = page.0.iter().zip(&made.0).position(|(found, kvm)| found != kvm);
    match differ {
        Some(offset) => Err(VmsaError { offset, found: page.0[offset], kvm: made.0[offset] }),
        None => Ok((vcpu, features)),
    }
}

fn bytes<const N: usize>(page: &VmsaPage, at: usize) -> [u8; N] {
    std::array::from_fn(|index| page.0[at + index])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{CpuSignature, Profile, RESET_VECTOR};

    fn page() -> VmsaPage {
        VmsaPage::new(&Profile::Qemu.vcpu(RESET_VECTOR, CpuSignature(0x00a0_0f11)), 0x21)
    }

    #[test]
    fn registers_come_back() {
        let vcpu = Profile::Qemu.vcpu(RESET_VECTOR, CpuSignature(0x00a0_0f11));
        assert_eq!(registers(&page()), Ok((vcpu, 0x21)));
    }

    /// Every byte of the page is either carried over or refused, never lost.
    #[test]
    fn no_byte_is_lost() {
        for offset in 0..4096 {
            let mut changed = page();
            changed.0[offset] ^= 0xff;
            if let Ok((vcpu, features)) = registers(&changed) {
                assert!(VmsaPage::new(&vcpu, features) == changed, "byte {offset:#x}");
            }
        }
    }

    #[test]
    fn registers_that_kvm_sets_must_match() {
        for (offset, bits) in [(0xd1, 0x10), (0x148, 0x40), (0x3b0, 1)] {
            let mut changed = page();
            changed.0[offset] &= !bits;
            assert_eq!(registers(&changed).unwrap_err().offset, offset);
        }
        let mut virtual_tom = page();
        virtual_tom.0[0x3c8] = 1;
        assert_eq!(registers(&virtual_tom).unwrap_err().offset, 0x3c8);
    }
}
