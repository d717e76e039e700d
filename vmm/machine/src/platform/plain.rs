//! KVM without memory encryption.

use casemate_kvm::vcpu;
use casemate_launch::{Import, InitialVcpu, PlatformKind};
use kvm_bindings::{CpuId, kvm_run};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Answer, Caller, Made, Platform, StepError, describe};
use crate::arch::{Exit, regs, sregs};
use crate::outcome::Outcome;

/// KVM without memory encryption: the host writes memory and registers as it likes.
pub struct Plain;

/// MSRs that a PC's firmware leaves set (Intel SDM volume 4).
const FIRMWARE_MSRS: [(u32, u64); 2] = [
    // IA32_MTRR_DEF_TYPE: enabled, fixed ranges too, write-back.
    (0x2ff, 1 << 11 | 1 << 10 | 6),
    // IA32_MISC_ENABLE: fast strings. Without it Linux does not use them.
    (0x1a0, 1),
];

impl Platform for Plain {
    fn kind(&self) -> PlatformKind {
        PlatformKind::Plain
    }

    fn confidential(&self) -> bool {
        false
    }

    fn prepare_vm(&mut self, _: &VmFd, _: &CpuId) -> Result<(), StepError> {
        Ok(())
    }

    fn prepare_vcpu(
        &mut self,
        vcpu: &VcpuFd,
        state: Option<&InitialVcpu>,
    ) -> Result<(), StepError> {
        let set = vcpu::set_msrs(vcpu, &FIRMWARE_MSRS)?;
        if set != FIRMWARE_MSRS.len() {
            return Err(StepError::Msrs { set });
        }
        // All others are at reset, and wait for INIT and SIPI.
        let Some(state) = state else { return Ok(()) };
        vcpu::set_sregs(vcpu, &sregs(state))?;
        Ok(vcpu::set_regs(vcpu, &regs(state))?)
    }

    fn import(&mut self, made: Made<'_>, import: &Import) -> Result<(), StepError> {
        Ok(made.ram.write(import)?)
    }

    fn finish(&mut self, _: &VmFd) -> Result<(), StepError> {
        Ok(())
    }

    fn answer(&self, _: &mut kvm_run, _: Caller<'_>) -> Answer {
        Answer::Unknown
    }

    fn last_words(&self, exit: &Exit<'_>) -> Outcome {
        Outcome::Failed(describe(exit))
    }
}
