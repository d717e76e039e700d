//! x86-64.

mod cpuid;
mod exit;
mod registers;

use casemate_kvm::{KernelError, vm};
use casemate_plan::board::gsi;
use kvm_ioctls::{VcpuFd, VmFd};

pub(crate) use cpuid::Cpuid;
pub use exit::Exit;
pub(crate) use exit::{RunPage, run, take_answer};
pub(crate) use registers::{regs, sregs};

/// Lets guests of this process have processor features that the kernel grants on request: AMX. Comes
/// before the VM, and is for guests whose registers KVM keeps.
pub(crate) fn permit_features() {
    vm::permit_amx();
}

/// Creates the local APICs. PIC and PIT are nobody's, and the I/O APIC is the machine's own.
pub(crate) fn create_interrupt_controller(vm: &VmFd) -> Result<(), KernelError> {
    vm::enable_split_irqchip(vm, gsi::COUNT.into())
}

/// Tells the guest that this vCPU did not run for a while, so that its watchdogs do not take the time for
/// a lockup of its own.
pub(crate) fn tell_of_pause(vcpu: &VcpuFd) {
    // EINVAL: the guest does not use kvmclock, and learns of pauses by its own means.
    let _ = vcpu.kvmclock_ctrl();
}
