//! From a file to a plan that KVM can launch.

use std::io::{Read, Seek};

use igvm_defs::{IGVM_VHS_SNP_ID_BLOCK, TdxPolicy as IgvmTdxPolicy};

use super::id_block;
use super::kvm::{Kvm, KvmRefusal};
use super::steps::{Parameter, Step, ZeroPages, walk};
use super::{IgvmError, IgvmFile, vmsa};
use crate::source::tdvf::{ATTRIBUTE_DEBUG, ATTRIBUTE_MIGRATABLE, ATTRIBUTE_SEPT_VE_DISABLE};
use crate::{
    GpaRange, Import, InitialVcpu, LaunchPlan, PlatformKind, Policy, SnpIdentity, SnpPolicy,
    TdxPolicy,
};

/// A file as a plan, with what the launcher has to add.
pub struct Imported {
    /// The plan. SEV-SNP: its vCPU is the file's; otherwise it has none, and the launcher adds
    /// them.
    pub plan: LaunchPlan,
    /// Memory that must be there and private, beside that of the plan.
    pub required: Vec<GpaRange>,
    /// Where the launcher writes what the guest needs to know: the index of an import of the plan,
    /// and a place in it. None of it is measured.
    pub parameters: Vec<(usize, Parameter)>,
}

/// Why a file makes no plan.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error(transparent)]
    Igvm(#[from] IgvmError),
    #[error("KVM cannot launch the IGVM file as it is written")]
    Kvm(#[source] KvmRefusal),
    #[error("plans are made of IGVM files for SEV-SNP and TDX, not for {}", .0.name())]
    Platform(PlatformKind),
    #[error("the IGVM file has no guest policy, without which SEV-SNP launches nothing")]
    NoPolicy,
}

/// Makes a plan of a file. The plan holds all bytes of the file's pages.
///
/// # Errors
/// If the file cannot be read as it claims to be, or KVM would not launch what it says.
pub fn import<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    kind: PlatformKind,
    mask: Option<u32>,
    zero_pages: ZeroPages,
) -> Result<Imported, ImportError> {
    let platform = file.platform(kind, mask)?;
    let mut parts = Parts::default();
    walk(file, platform, zero_pages, &mut |step| {
        parts.add(step);
        Ok(())
    })?;
    let (policy, identity) = match kind {
        PlatformKind::Snp => {
            parts.kvm.launchable().map_err(ImportError::Kvm)?;
            let policy = parts.snp_policy()?;
            let id_block = parts.id_block.as_deref();
            let id_block = id_block.map(|block| id_block::to_plan(block, policy.guest_policy));
            (Policy::Snp(policy), SnpIdentity { id_block, ..SnpIdentity::default() })
        }
        PlatformKind::Tdx => {
            parts.kvm.refused().map_err(ImportError::Kvm)?;
            (Policy::Tdx(parts.tdx_policy()), SnpIdentity::default())
        }
        PlatformKind::Plain => return Err(ImportError::Platform(kind)),
    };
    let vcpus = parts.vcpu.into_iter().map(|(vcpu, _)| vcpu).collect();
    let plan = LaunchPlan { imports: parts.imports, vcpus, policy, identity };
    Ok(Imported { plan, required: parts.required, parameters: parts.parameters })
}

/// What the steps of a file add up to.
#[derive(Default)]
struct Parts {
    imports: Vec<Import>,
    parameters: Vec<(usize, Parameter)>,
    required: Vec<GpaRange>,
    policy: Option<u64>,
    id_block: Option<Box<IGVM_VHS_SNP_ID_BLOCK>>,
    vcpu: Option<(InitialVcpu, u64)>,
    kvm: Kvm,
}

impl Parts {
    fn add(&mut self, step: Step) {
        self.kvm.see(&step);
        match step {
            Step::Pages { import, parameters } => {
                let index = self.imports.len();
                self.parameters.extend(parameters.into_iter().map(|place| (index, place)));
                self.imports.push(import);
            }
            // Whatever is wrong with it, `kvm` has seen.
            Step::VpContext { page, .. } => self.vcpu = vmsa::registers(&page).ok(),
            Step::RequiredMemory(range) => self.required.push(range),
            Step::Policy(policy) => self.policy = Some(policy),
            Step::IdBlock(block) => self.id_block = Some(block),
            Step::ErrorRange { .. } => {}
        }
    }

    fn snp_policy(&self) -> Result<SnpPolicy, ImportError> {
        let guest_policy = self.policy.ok_or(ImportError::NoPolicy)?;
        let vmsa_features = self.vcpu.as_ref().map_or(1, |(_, features)| *features);
        Ok(SnpPolicy { guest_policy, vmsa_features })
    }

    fn tdx_policy(&self) -> TdxPolicy {
        let given = self.policy.map(IgvmTdxPolicy::from);
        let bit = |set: u8, attribute| if set != 0 { attribute } else { 0 };
        let attributes = given.map_or(ATTRIBUTE_SEPT_VE_DISABLE, |policy| {
            bit(policy.debug_allowed(), ATTRIBUTE_DEBUG)
                | bit(policy.sept_ve_disable(), ATTRIBUTE_SEPT_VE_DISABLE)
                | bit(policy.migratable(), ATTRIBUTE_MIGRATABLE)
        });
        TdxPolicy::new(attributes)
    }
}
