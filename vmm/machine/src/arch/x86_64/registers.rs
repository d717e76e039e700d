//! The registers of a launch plan, as KVM takes them.

use casemate_launch::{InitialVcpu, Segment};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use casemate_plan::board::LOCAL_APIC;

/// IA32_APIC_BASE: the APIC is on; this is the boot processor.
const APIC_ENABLED: u64 = 1 << 11;
const APIC_BOOT_PROCESSOR: u64 = 1 << 8;

/// General registers.
pub(crate) fn regs(vcpu: &InitialVcpu) -> kvm_regs {
    kvm_regs {
        rax: vcpu.rax,
        rbx: vcpu.rbx,
        rcx: vcpu.rcx,
        rdx: vcpu.rdx,
        rsi: vcpu.rsi,
        rdi: vcpu.rdi,
        rsp: vcpu.rsp,
        rbp: vcpu.rbp,
        r8: vcpu.r8,
        r9: vcpu.r9,
        r10: vcpu.r10,
        r11: vcpu.r11,
        r12: vcpu.r12,
        r13: vcpu.r13,
        r14: vcpu.r14,
        r15: vcpu.r15,
        rip: vcpu.rip,
        rflags: vcpu.rflags,
    }
}

/// Segments and control registers of the boot processor.
pub(crate) fn sregs(vcpu: &InitialVcpu) -> kvm_sregs {
    kvm_sregs {
        cs: segment(&vcpu.cs),
        ds: segment(&vcpu.ds),
        es: segment(&vcpu.es),
        fs: segment(&vcpu.fs),
        gs: segment(&vcpu.gs),
        ss: segment(&vcpu.ss),
        tr: segment(&vcpu.tr),
        ldt: segment(&vcpu.ldtr),
        gdt: table(&vcpu.gdtr),
        idt: table(&vcpu.idtr),
        cr0: vcpu.cr0,
        cr3: vcpu.cr3,
        cr4: vcpu.cr4,
        efer: vcpu.efer,
        apic_base: u64::from(LOCAL_APIC) | APIC_ENABLED | APIC_BOOT_PROCESSOR,
        ..kvm_sregs::default()
    }
}

fn table(register: &Segment) -> kvm_dtable {
    let limit = u16::try_from(register.limit).unwrap_or(u16::MAX);
    kvm_dtable { base: register.base, limit, padding: [0; 3] }
}

/// From the VMSA's packed attributes.
fn segment(segment: &Segment) -> kvm_segment {
    let bits = |from: u16, mask: u16| u8::try_from(segment.attributes >> from & mask).unwrap_or(0);
    let present = bits(7, 1);
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: bits(0, 0xf),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present,
        avl: bits(8, 1),
        l: bits(9, 1),
        db: bits(10, 1),
        g: bits(11, 1),
        unusable: u8::from(present == 0),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_unpack() {
        let code =
            segment(&Segment { selector: 0x10, attributes: 0xa9b, limit: u32::MAX, base: 0 });
        assert_eq!((code.type_, code.s, code.dpl, code.present), (0xb, 1, 0, 1));
        assert_eq!((code.avl, code.l, code.db, code.g, code.unusable), (0, 1, 0, 1, 0));
        assert_eq!(segment(&Segment::default()).unusable, 1);
    }
}
