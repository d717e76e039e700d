//! Intel TDX.

mod calls;
mod cpuid;
mod quote_buffer;
#[cfg(test)]
mod tests;

use std::io;

use calls::Calls;
use casemate_config::QuoteService;
use casemate_firmware_logic::fatal::Fatal;
use casemate_kvm::exit::{KVM_SYSTEM_EVENT_TDX_FATAL, TdxCall, TdxFatal};
use casemate_kvm::tdx::{self, Gpaw, InitVm, Measure};
use casemate_kvm::vm;
use casemate_launch::{Import, InitialVcpu, LaunchPlan, PageKind, PlatformKind, Policy, TdxPolicy};
use casemate_sandbox::Sandbox;
use kvm_bindings::{CpuId, kvm_run};
use kvm_ioctls::{VcpuFd, VmFd};

pub use quote_buffer::report;

use super::{Answer, Caller, Made, Platform, StepError, describe, pages};
use crate::arch::Exit;
use crate::helper::Helper;
use crate::outcome::Outcome;

/// What a guest sees is the same on all hosts: all have this width, and it is enough for 128 TiB.
const GPAW: Gpaw = Gpaw::Bits48;

/// The period of the APIC bus that the TDX module tells guests (25 MHz), in nanoseconds.
const APIC_BUS_CYCLE: u64 = 40;

/// Intel TDX: memory and registers are the guest's alone, and the launch is measured.
pub struct Tdx {
    policy: TdxPolicy,
    calls: Calls,
}

impl Tdx {
    /// For the launch of `plan`; its reports become quotes by `service`.
    ///
    /// # Errors
    /// The plan is for another platform.
    pub fn new(plan: &LaunchPlan, service: QuoteService) -> Result<Self, StepError> {
        let Policy::Tdx(policy) = plan.policy.clone() else {
            return Err(StepError::Plan { platform: plan.platform() });
        };
        Ok(Self { policy, calls: Calls::new(service) })
    }
}

/// A word before the close of a TD that takes long. Kernels up to 7.2 take its pages back one by one,
/// some 4 seconds for each GiB that the guest touched: to whoever waits, this process hangs, and cannot
/// be killed.
fn slow_close(private: u64) -> Option<String> {
    const GIB: u64 = 1 << 30;
    let gib = private / GIB;
    (gib >= 4).then(|| {
        format!(
            "the kernel now takes back up to {gib} GiB of the guest's private memory, which may take \
             minutes; let what supervises this process wait for it"
        )
    })
}

impl Platform for Tdx {
    fn kind(&self) -> PlatformKind {
        PlatformKind::Tdx
    }

    fn confidential(&self) -> bool {
        true
    }

    fn prepare_vm(&mut self, vm: &VmFd, cpuid: &CpuId) -> Result<(), StepError> {
        vm::enable_map_gpa_range_exits(vm)?;
        vm::set_apic_bus_cycle(vm, APIC_BUS_CYCLE)?;
        vm::set_tsc_khz(vm, cpuid::tsc_khz(vm::tsc_khz(vm)?))?;
        let capabilities = tdx::capabilities(vm)?;
        let TdxPolicy { attributes, xfam, mrconfigid, mrowner, mrownerconfig } = self.policy;
        for (what, wanted, offered) in [
            ("TD attributes", attributes, capabilities.attributes),
            ("XFAM bits", xfam, capabilities.xfam),
        ] {
            if wanted & !offered != 0 {
                return Err(StepError::NotOffered { what, bits: wanted & !offered });
            }
        }
        self.calls.tell(capabilities.kernel_calls, capabilities.user_calls);
        let cpuid = capabilities.configure(cpuid.as_slice(), GPAW);
        let init = InitVm { attributes, xfam, mrconfigid, mrowner, mrownerconfig, cpuid };
        Ok(tdx::init_vm(vm, &init)?)
    }

    /// The TDX module sets all registers; the host chooses what RCX has.
    fn prepare_vcpu(
        &mut self,
        vcpu: &VcpuFd,
        state: Option<&InitialVcpu>,
    ) -> Result<(), StepError> {
        let state = state.ok_or(StepError::Registers)?;
        let mut cpuid = casemate_kvm::cpuid::of(vcpu)?;
        cpuid::adapt(cpuid.as_mut_slice());
        casemate_kvm::cpuid::set(vcpu, &cpuid)?;
        Ok(tdx::init_vcpu(vcpu, state.rcx)?)
    }

    fn import(&mut self, made: Made<'_>, import: &Import) -> Result<(), StepError> {
        let measure = match import.kind {
            PageKind::Normal => Measure::Contents,
            PageKind::Unmeasured | PageKind::Zero => Measure::Address,
            PageKind::Shared => return Ok(made.ram.write(import)?),
            kind @ (PageKind::Secrets | PageKind::Cpuid) => return Err(StepError::Page { kind }),
        };
        let vcpu = made.vcpus.first().ok_or(StepError::Registers)?;
        Ok(tdx::init_mem_region(vcpu, import.range.start().0, &pages(import), measure)?)
    }

    fn finish(&mut self, vm: &VmFd) -> Result<(), StepError> {
        Ok(tdx::finalize_vm(vm)?)
    }

    fn serve(&mut self, sandbox: &Sandbox) -> io::Result<()> {
        self.calls.help(Helper::start(sandbox)?);
        Ok(())
    }

    fn answer(&self, run: &mut kvm_run, caller: Caller<'_>) -> Answer {
        let Some(call) = TdxCall::of(run) else { return Answer::Unknown };
        self.calls.answer(call, caller).put(run);
        Answer::Done
    }

    fn before_close(&self, private: u64) {
        if let Some(words) = slow_close(private) {
            tracing::warn!("{words}");
        }
    }

    fn last_words(&self, exit: &Exit<'_>) -> Outcome {
        Outcome::Failed(match exit {
            Exit::SystemEvent { kind: KVM_SYSTEM_EVENT_TDX_FATAL, data } => {
                let error = TdxFatal::decode(data);
                match Fatal::from_tdx_code(error.code) {
                    Some(fatal) => format!("the firmware ended the guest: {fatal}"),
                    None => error.to_string(),
                }
            }
            exit => describe(exit),
        })
    }
}
