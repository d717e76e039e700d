//! AMD SEV-SNP.

mod certificates;
mod cpuid;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use certificates::Certificates;

use casemate_firmware_logic::fatal::{Fatal, TERMINATION_SET};
use casemate_kvm::error::{SevStatus, Status};
use casemate_kvm::exit::{
    CertificateRequest, KVM_EXIT_SNP_REQ_CERTS, KVM_SYSTEM_EVENT_SEV_TERM, SevTermination,
};
use casemate_kvm::sev_device::SevDevice;
use casemate_kvm::snp::{self, Finish, Update};
use casemate_kvm::vcpu;
use casemate_kvm::vm::{self, SevAttributes};
use casemate_launch::{
    Import, InitialVcpu, LaunchPlan, PageKind, PlatformKind, Policy, SnpIdentity, SnpPolicy,
};
use casemate_sandbox::Sandbox;
use kvm_bindings::{CpuId, kvm_run};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Answer, Caller, Made, Platform, StepError, describe, pages};
use crate::arch::{Exit, regs, sregs};
use crate::outcome::Outcome;

/// SNP_ACTIVE, which the kernel sets itself.
const ACTIVE: u64 = 1;

/// IA32_PAT.
const PAT: u32 = 0x277;

/// AMD SEV-SNP: memory and registers are encrypted, and the launch is measured.
pub struct Snp {
    /// Stays open for the guest's whole life: KVM uses it for the guest's requests to the firmware.
    sev: SevDevice,
    policy: SnpPolicy,
    identity: SnpIdentity,
    /// What vCPU 0 was given, for the CPUID page.
    cpuid: Option<CpuId>,
    /// What the processor has, once a vCPU needed it.
    processor: Option<cpuid::Processor>,
    /// For the guest's reports, if it is to get any.
    certificates: Option<Certificates>,
}

impl Snp {
    /// For the launch of `plan`; `certificates` is a file with those that reports come with.
    ///
    /// # Errors
    /// The plan is for another platform or asks for what the host does not offer, or /dev/kvm or
    /// /dev/sev cannot be opened.
    pub fn new(plan: &LaunchPlan, certificates: Option<&Path>) -> Result<Self, StepError> {
        let snp = Self::with_device(plan, Path::new(SevDevice::PATH), certificates)?;
        snp.check(&SevAttributes::of(&vm::open()?))?;
        Ok(snp)
    }

    /// Whether the host has what the guest asks for.
    fn check(&self, host: &SevAttributes) -> Result<(), StepError> {
        let SnpPolicy { guest_policy, vmsa_features } = self.policy;
        for (what, wanted, offered) in [
            ("SEV-SNP guest policy bits", guest_policy, host.policy_mask()),
            ("VMSA features", vmsa_features & !ACTIVE, host.vmsa_features),
        ] {
            if wanted & !offered != 0 {
                return Err(StepError::NotOffered { what, bits: wanted & !offered });
            }
        }
        if self.certificates.is_some() && !host.certificate_requests {
            return Err(StepError::Certificates);
        }
        Ok(())
    }

    /// With another path of the device, and nothing asked of the host.
    fn with_device(
        plan: &LaunchPlan,
        device: &Path,
        certificates: Option<&Path>,
    ) -> Result<Self, StepError> {
        let Policy::Snp(policy) = plan.policy.clone() else {
            return Err(StepError::Plan { platform: plan.platform() });
        };
        let sev = SevDevice::open(device)?;
        Ok(Self {
            sev,
            policy,
            identity: plan.identity.clone(),
            cpuid: None,
            processor: None,
            certificates: certificates.map(Certificates::of),
        })
    }

    /// Adds the CPUID page. Values that the firmware refuses are replaced by its own, in KVM as well.
    /// Nobody says whether it replaces all of them at once: the page is offered for as long as it
    /// comes back changed.
    fn add_cpuid(&self, made: Made<'_>, gpa: u64) -> Result<(), StepError> {
        /// One for each entry of the page.
        const TRIES: u32 = 64;
        let entries = self.cpuid.as_ref().map(CpuId::as_slice).unwrap_or_default();
        let mut page = cpuid::page(entries)?;
        let first = page.clone();
        for left in (0..TRIES).rev() {
            let offered = page.clone();
            let outcome = snp::launch_update(made.vm, &self.sev, gpa, Update::Cpuid(&mut page));
            match outcome {
                Err(error)
                    if error.status() == Status::Sev(SevStatus::INVALID_PARAM)
                        && page.0 != offered.0
                        && left > 0 => {}
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        let corrections = cpuid::corrections(&first, &page);
        if corrections.is_empty() {
            return Ok(());
        }
        let said: Vec<_> = corrections.iter().map(ToString::to_string).collect();
        tracing::warn!("the firmware replaced values of CPUID: {}", said.join(", "));
        for vcpu in made.vcpus {
            let mut cpuid = casemate_kvm::cpuid::of(vcpu)?;
            cpuid::correct(cpuid.as_mut_slice(), &corrections);
            casemate_kvm::cpuid::set(vcpu, &cpuid)?;
        }
        Ok(())
    }
}

impl Platform for Snp {
    fn kind(&self) -> PlatformKind {
        PlatformKind::Snp
    }

    fn confidential(&self) -> bool {
        true
    }

    fn prepare_vm(&mut self, vm: &VmFd, _: &CpuId) -> Result<(), StepError> {
        vm::enable_map_gpa_range_exits(vm)?;
        snp::init(vm, &self.sev, self.policy.vmsa_features & !ACTIVE)?;
        if self.certificates.is_some() {
            snp::enable_certificate_requests(vm, &self.sev)?;
        }
        Ok(snp::launch_start(vm, &self.sev, self.policy.guest_policy)?)
    }

    /// The whole register file: what KVM has after a reset is not what the plan says.
    fn prepare_vcpu(
        &mut self,
        vcpu: &VcpuFd,
        state: Option<&InitialVcpu>,
    ) -> Result<(), StepError> {
        let state = state.ok_or(StepError::Registers)?;
        let mut cpuid = casemate_kvm::cpuid::of(vcpu)?;
        let processor = match self.processor.take() {
            Some(processor) => processor,
            None => cpuid::Processor::read()?,
        };
        cpuid::adapt(cpuid.as_mut_slice(), &processor);
        self.processor = Some(processor);
        casemate_kvm::cpuid::set(vcpu, &cpuid)?;
        self.cpuid.get_or_insert(cpuid);

        let mut sregs = sregs(state);
        sregs.apic_base = vcpu::apic_base(vcpu)?;
        vcpu::set_sregs(vcpu, &sregs)?;
        vcpu::set_regs(vcpu, &regs(state))?;
        vcpu::set_fpu(vcpu, state.x87_fcw, state.mxcsr)?;
        vcpu::set_xcr0(vcpu, state.xcr0)?;
        vcpu::set_debug_regs(vcpu, state.dr6, state.dr7)?;
        if vcpu::set_msrs(vcpu, &[(PAT, state.g_pat)])? != 1 {
            return Err(StepError::Msrs { set: 0 });
        }
        if state.waits_for_sipi {
            return Ok(());
        }
        // A vCPU that waits for INIT never gets the state that the guest's kernel makes for it.
        Ok(vcpu::set_runnable(vcpu)?)
    }

    fn import(&mut self, made: Made<'_>, import: &Import) -> Result<(), StepError> {
        let Made { vm, ram, .. } = made;
        let gpa = import.range.start().0;
        let count = import.range.pages().0;
        let update = |update: Update<'_>| snp::launch_update(vm, &self.sev, gpa, update);
        match import.kind {
            PageKind::Normal => update(Update::Normal(&pages(import)))?,
            PageKind::Unmeasured => update(Update::Unmeasured(&pages(import)))?,
            PageKind::Zero => update(Update::Zero(count))?,
            PageKind::Secrets => update(Update::Secrets)?,
            PageKind::Cpuid => self.add_cpuid(made, gpa)?,
            PageKind::Shared => ram.write(import)?,
        }
        Ok(())
    }

    fn finish(&mut self, vm: &VmFd) -> Result<(), StepError> {
        let id_block = self.identity.id_block.as_ref().map(|id| snp::IdBlock {
            block: &id.block,
            authentication: &id.authentication,
            has_author_key: id.author_key,
        });
        let (vcek_disabled, host_data) = (self.identity.vcek_disabled, self.identity.host_data);
        let finish = Finish { id_block, vcek_disabled, host_data };
        Ok(snp::launch_finish(vm, &self.sev, &finish)?)
    }

    fn serve(&mut self, sandbox: &Sandbox) -> io::Result<()> {
        match &mut self.certificates {
            Some(certificates) => certificates.serve(sandbox),
            None => Ok(()),
        }
    }

    fn answer(&self, run: &mut kvm_run, caller: Caller<'_>) -> Answer {
        let request = CertificateRequest::of(run);
        let (Some(request), Some(certificates)) = (request, &self.certificates) else {
            return Answer::Unknown;
        };
        let (reply, held) = certificates.answer(request, caller.ram.memory());
        reply.put(run);
        held.map_or(Answer::Done, Answer::Holding)
    }

    fn last_words(&self, exit: &Exit<'_>) -> Outcome {
        Outcome::Failed(match exit {
            Exit::SystemEvent { kind: KVM_SYSTEM_EVENT_SEV_TERM, data } => {
                let end = SevTermination::decode(data.first().copied().unwrap_or_default());
                let firmware = Fatal::from_code(end.reason);
                match firmware.filter(|_| end.reason_set == TERMINATION_SET) {
                    Some(fatal) => format!("the firmware ended the guest: {fatal}"),
                    None => end.to_string(),
                }
            }
            Exit::Unexpected(KVM_EXIT_SNP_REQ_CERTS) => {
                "the guest asked for certificates, which were not enabled".into()
            }
            exit => describe(exit),
        })
    }
}
