//! vCPUs before they run: how they are created, and their registers. kvm-ioctls makes the calls.

use std::fmt;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::KernelError;
use crate::boundary::{Argument, Firmware, Reply, Told, call};
use crate::error::Status;

/// Creates the vCPU `id`, which is also its APIC id (KVM_CREATE_VCPU).
///
/// # Errors
/// The VM has it already, or may have no more ([`max_vcpus`](crate::vm::max_vcpus)), or the host is
/// out of memory or files.
pub fn create(vm: &VmFd, id: u32) -> Result<VcpuFd, KernelError> {
    const NAME: &str = "KVM_CREATE_VCPU";
    let create = || vm.create_vcpu(id.into());
    let mut created = None;
    call(NAME, Firmware::None, &mut Told::new(format_args!("vCPU {id}")), |_| {
        Reply::by(create().map(|vcpu| created = Some(vcpu)))
    })?;
    let stand_in = |error: kvm_ioctls::Error| {
        KernelError::new(NAME, format!("stand-in of vCPU {id}"), error.errno(), Status::None)
    };
    // Without one, an interposer said yes in the kernel's place: its plain VM has vCPUs, too.
    created.map_or_else(|| create().map_err(stand_in), Ok)
}

/// Runs a command of kvm-ioctls on a vCPU, with its argument in words.
fn tell(
    name: &'static str,
    words: impl fmt::Display,
    kernel: impl FnOnce() -> Result<(), kvm_ioctls::Error>,
) -> Result<(), KernelError> {
    call(name, Firmware::None, &mut Told::new(words), |_| Reply::by(kernel())).map(drop)
}

/// Sets the general registers (KVM_SET_REGS).
///
/// # Errors
/// The guest's state is protected already.
pub fn set_regs(vcpu: &VcpuFd, regs: &kvm_regs) -> Result<(), KernelError> {
    let all = [
        ("RAX", regs.rax),
        ("RBX", regs.rbx),
        ("RCX", regs.rcx),
        ("RDX", regs.rdx),
        ("RSI", regs.rsi),
        ("RDI", regs.rdi),
        ("RSP", regs.rsp),
        ("RBP", regs.rbp),
        ("R8", regs.r8),
        ("R9", regs.r9),
        ("R10", regs.r10),
        ("R11", regs.r11),
        ("R12", regs.r12),
        ("R13", regs.r13),
        ("R14", regs.r14),
        ("R15", regs.r15),
        ("RIP", regs.rip),
        ("RFLAGS", regs.rflags),
    ];
    tell("KVM_SET_REGS", registers(&all), || vcpu.set_regs(regs))
}

/// Registers in words, without those that are 0.
fn registers(all: &[(&str, u64)]) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let mut separator = "";
        for (name, value) in all.iter().filter(|(_, value)| *value != 0) {
            write!(f, "{separator}{name} {value:#x}")?;
            separator = ", ";
        }
        f.write_str(if separator.is_empty() { "all 0" } else { "" })
    })
}

/// IA32_APIC_BASE as it is at reset (KVM_GET_SREGS).
///
/// # Errors
/// The guest's state is protected already.
pub fn apic_base(vcpu: &VcpuFd) -> Result<u64, KernelError> {
    let mut base = ApicBase(0);
    call("KVM_GET_SREGS", Firmware::None, &mut base, |base| {
        Reply::by(vcpu.get_sregs().map(|sregs| base.0 = sregs.apic_base))
    })?;
    Ok(base.0)
}

/// What is wanted of all that KVM_GET_SREGS says.
struct ApicBase(u64);

impl fmt::Display for ApicBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IA32_APIC_BASE")
    }
}

impl Argument for ApicBase {
    fn bytes(&mut self) -> &mut [u8] {
        zerocopy::IntoBytes::as_mut_bytes(&mut self.0)
    }
}

/// Sets segments, control registers, EFER and IA32_APIC_BASE (KVM_SET_SREGS).
///
/// # Errors
/// They contradict each other, or the guest's state is protected already.
pub fn set_sregs(vcpu: &VcpuFd, sregs: &kvm_sregs) -> Result<(), KernelError> {
    let all = [
        ("CR0", sregs.cr0),
        ("CR2", sregs.cr2),
        ("CR3", sregs.cr3),
        ("CR4", sregs.cr4),
        ("CR8", sregs.cr8),
        ("EFER", sregs.efer),
        ("IA32_APIC_BASE", sregs.apic_base),
    ];
    let segments = [
        ("CS", &sregs.cs),
        ("DS", &sregs.ds),
        ("ES", &sregs.es),
        ("FS", &sregs.fs),
        ("GS", &sregs.gs),
        ("SS", &sregs.ss),
        ("TR", &sregs.tr),
        ("LDTR", &sregs.ldt),
    ];
    let words = fmt::from_fn(|f| {
        write!(f, "{}", registers(&all))?;
        for (name, segment) in segments {
            write!(f, ", {name} {}", in_words(segment))?;
        }
        for (name, kvm_dtable { base, limit, .. }) in [("GDTR", sregs.gdt), ("IDTR", sregs.idt)] {
            write!(f, ", {name} {base:#x} limit {limit:#x}")?;
        }
        Ok(())
    });
    tell("KVM_SET_SREGS", words, || vcpu.set_sregs(sregs))
}

/// Selector, base, limit, and the attributes as a VMSA has them (AMD64 APM volume 2, table B-2).
fn in_words(segment: &kvm_segment) -> String {
    let kvm_segment { base, limit, selector, unusable, .. } = segment;
    let attributes = [
        (segment.type_, 0),
        (segment.s, 4),
        (segment.dpl, 5),
        (segment.present, 7),
        (segment.avl, 8),
        (segment.l, 9),
        (segment.db, 10),
        (segment.g, 11),
    ];
    let attributes: u16 = attributes.iter().map(|(bits, at)| u16::from(*bits) << at).sum();
    let unusable = if *unusable == 0 { "" } else { " unusable" };
    format!("{selector:#x} base {base:#x} limit {limit:#x} attributes {attributes:#x}{unusable}")
}

/// Sets the x87 control word and MXCSR, and all else of the floating-point unit to 0 (KVM_SET_FPU).
///
/// # Errors
/// The guest's state is protected already.
pub fn set_fpu(vcpu: &VcpuFd, fcw: u16, mxcsr: u32) -> Result<(), KernelError> {
    let fpu = kvm_fpu { fcw, mxcsr, ..kvm_fpu::default() };
    tell("KVM_SET_FPU", format_args!("FCW {fcw:#x}, MXCSR {mxcsr:#x}"), || vcpu.set_fpu(&fpu))
}

/// Sets XCR0 (KVM_SET_XCRS).
///
/// # Errors
/// The vCPU's CPUID does not have these states.
pub fn set_xcr0(vcpu: &VcpuFd, value: u64) -> Result<(), KernelError> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value };
    tell("KVM_SET_XCRS", format_args!("XCR0 {value:#x}"), || vcpu.set_xcrs(&xcrs))
}

/// Sets DR6 and DR7, and the breakpoints to 0 (KVM_SET_DEBUGREGS).
///
/// # Errors
/// The values have bits that are not theirs.
pub fn set_debug_regs(vcpu: &VcpuFd, dr6: u64, dr7: u64) -> Result<(), KernelError> {
    let debug = kvm_debugregs { dr6, dr7, ..kvm_debugregs::default() };
    let words = format_args!("DR6 {dr6:#x}, DR7 {dr7:#x}");
    tell("KVM_SET_DEBUGREGS", words, || vcpu.set_debug_regs(&debug))
}

/// Sets MSRs (KVM_SET_MSRS): index and value. Returns how many the kernel has taken: it stops at the
/// first that it does not.
///
/// # Errors
/// There are too many of them.
pub fn set_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<usize, KernelError> {
    const NAME: &str = "KVM_SET_MSRS";
    let words = fmt::from_fn(|f| {
        let mut separator = "";
        for (index, data) in msrs {
            write!(f, "{separator}{index:#x} = {data:#x}")?;
            separator = ", ";
        }
        Ok(())
    });
    let entry = |&(index, data): &(u32, u64)| kvm_msr_entry { index, data, reserved: 0 };
    let entries: Vec<_> = msrs.iter().map(entry).collect();
    let list = Msrs::from_entries(&entries)
        .map_err(|_| KernelError::new(NAME, words.to_string(), libc::E2BIG, Status::None))?;
    let mut told = Told::returning(words, i32::try_from(msrs.len()).unwrap_or(0));
    let set = call(NAME, Firmware::None, &mut told, |_| match vcpu.set_msrs(&list) {
        Ok(set) => Reply { value: i32::try_from(set).unwrap_or(0), ..Reply::default() },
        Err(error) => Reply::errno(error.errno()),
    })?;
    Ok(usize::try_from(set).unwrap_or(0))
}

/// Lets the vCPU run without INIT and SIPI before (KVM_SET_MP_STATE).
///
/// # Errors
/// The VM has no local APICs.
pub fn set_runnable(vcpu: &VcpuFd) -> Result<(), KernelError> {
    let state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    tell("KVM_SET_MP_STATE", "runnable", || vcpu.set_mp_state(state))
}
