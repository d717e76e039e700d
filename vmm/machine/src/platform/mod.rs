//! What differs between plain guests and those of SEV-SNP and TDX.

mod error;
mod plain;
mod snp;
mod tdx;

pub use error::StepError;
pub use plain::Plain;
pub use snp::Snp;
pub use tdx::{Tdx, report as quote_request};

use std::io;
use std::sync::Arc;

use casemate_kvm::Page;
use casemate_launch::{Contents, Import, InitialVcpu, PlatformKind};
use casemate_sandbox::Sandbox;
use kvm_bindings::{CpuId, kvm_run};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::Exit;
use crate::outcome::Outcome;
use crate::ram::GuestRam;

/// What a launch has made so far.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    /// The VM.
    pub vm: &'a VmFd,
    /// Its memory.
    pub ram: &'a GuestRam,
    /// Its vCPUs, the boot processor first.
    pub vcpus: &'a [VcpuFd],
}

/// Who left the guest with an exit that only its platform knows.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The vCPU's number, which is its APIC id.
    pub vcpu: u32,
    /// The VM.
    pub vm: &'a Arc<VmFd>,
    /// Its memory.
    pub ram: &'a GuestRam,
}

/// What came of an exit that only a platform may know.
pub enum Answer {
    /// It does not know it.
    Unknown,
    /// It is answered.
    Done,
    /// It is answered, and this is to live until the kernel has taken the answer.
    Holding(Box<dyn Send>),
}

/// A kind of guest, as the launch and the vCPUs see it. The calls come in the order of the methods.
pub trait Platform: Send + Sync {
    /// The platform.
    fn kind(&self) -> PlatformKind;

    /// Whether the guest keeps its memory from the host. Devices then tell its drivers.
    fn confidential(&self) -> bool;

    /// Prepares the VM, which has neither memory nor vCPUs yet; `cpuid` is what KVM supports, as the
    /// boot processor is to have it.
    ///
    /// # Errors
    /// If KVM or the platform's firmware refuses.
    fn prepare_vm(&mut self, vm: &VmFd, cpuid: &CpuId) -> Result<(), StepError>;

    /// Prepares a new vCPU; `state` is what the plan has for it.
    ///
    /// # Errors
    /// If KVM refuses.
    fn prepare_vcpu(&mut self, vcpu: &VcpuFd, state: Option<&InitialVcpu>)
    -> Result<(), StepError>;

    /// Takes one import of the plan.
    ///
    /// # Errors
    /// If KVM or the platform's firmware refuses, or it does not lie in memory.
    fn import(&mut self, made: Made<'_>, import: &Import) -> Result<(), StepError>;

    /// Ends the launch: from now on vCPUs may run, and nothing may be imported.
    ///
    /// # Errors
    /// If KVM or the platform's firmware refuses.
    fn finish(&mut self, vm: &VmFd) -> Result<(), StepError>;

    /// Starts the thread that does for vCPUs what their own threads may not in `sandbox`, if the platform needs
    /// one.
    ///
    /// # Errors
    /// If the host has no more threads or files, or refuses the sandbox.
    fn serve(&mut self, _sandbox: &Sandbox) -> io::Result<()> {
        Ok(())
    }

    /// Answers an exit that only this platform knows, in `run`.
    fn answer(&self, run: &mut kvm_run, caller: Caller<'_>) -> Answer;

    /// Comes after the last exit, before the VM is closed: `private` bytes at most are the guest's own.
    fn before_close(&self, _private: u64) {}

    /// What the end of a guest means that left this exit behind, which no device took.
    fn last_words(&self, exit: &Exit<'_>) -> Outcome;
}

/// An import's bytes as pages; zeroes fill its range.
fn pages(import: &Import) -> Vec<Page> {
    let mut pages = match &import.contents {
        Contents::Zeroes => Vec::new(),
        Contents::Bytes(bytes) => Page::pages_of(bytes),
    };
    let count = usize::try_from(import.range.pages().0).unwrap_or(usize::MAX);
    pages.resize(count, Page::ZERO);
    pages
}

/// An exit that no device took, in words.
fn describe(exit: &Exit<'_>) -> String {
    match exit {
        Exit::InternalError { suberror: 1 } => {
            "KVM cannot emulate an instruction of the guest (internal error 1); a host whose KVM \
             has no hardware virtualisation runs few guests"
                .into()
        }
        Exit::InternalError { suberror } => format!("KVM internal error {suberror}"),
        Exit::EntryFailed { reason } => {
            format!("the CPU refused to enter the guest, reason {reason:#x}")
        }
        exit => format!("unexpected exit of a vCPU: {exit:?}"),
    }
}
