//! What differs between processor architectures, below the platforms: what a VM needs before it has vCPUs,
//! the features and registers of a vCPU, and the reason why it comes back from KVM_RUN.
//!
//! Nothing here knows a platform, and only this folder names registers. Another architecture, such as Arm
//! with its realms, is a folder beside `x86_64` with the same names.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("vCPUs of this architecture are not known: add a folder beside arch/x86_64");

mod x86_64;

pub use x86_64::Exit;
pub(crate) use x86_64::{
    Cpuid, RunPage, create_interrupt_controller, permit_features, regs, run, sregs, take_answer,
    tell_of_pause,
};
