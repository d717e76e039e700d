//! What SEV-SNP measures of a plan: the launch digest.
//!
//! Follow one page: [`measure`] takes the plan's imports in order; [`LaunchDigest::add_import`]
//! hashes the pages of one import; [`LaunchDigest::add_page`] folds one page into the digest.
//! After the pages, each vCPU's VMSA page is folded in the same way.

mod digest;
mod firmware_digest;
pub mod id_block;
mod manifest;
mod pages;
pub mod search;

pub use crate::plan::{VMSA_GPA, VmsaPage, registers};
pub use crate::rules::{CpuSignature, CpuSignatureError};
pub use digest::{LaunchDigest, PageType};
pub use firmware_digest::{FirmwareDigest, FirmwareDigestError};
pub use manifest::manifest;

use crate::{Digest384, LaunchPlan, PlatformKind, Policy, SnpPolicy};

/// Why a plan has no launch digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Only a plan for SEV-SNP has one.
    #[error("only plans for SEV-SNP have a launch digest; this plan is for {}", .0.name())]
    NotSnp(PlatformKind),
}

/// The launch digest of a plan, step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// The digest after each import, in plan order.
    pub after_imports: Vec<Digest384>,
    /// The digest after each vCPU's VMSA, in plan order.
    pub after_vcpus: Vec<Digest384>,
}

impl Measurement {
    /// MEASUREMENT of the attestation report.
    #[must_use]
    pub fn launch_digest(&self) -> Digest384 {
        let last = self.after_vcpus.last().or(self.after_imports.last());
        last.copied().unwrap_or(Digest384::ZERO)
    }

    /// The digest after the firmware's pages alone, from which the digest of another vCPU count or
    /// kernel can be computed without the firmware. `None` if the plan does not begin with firmware.
    #[must_use]
    pub fn firmware_seed(&self, plan: &LaunchPlan) -> Option<Digest384> {
        let first = plan.imports.first()?;
        (first.tag == crate::FIRMWARE_TAG).then(|| self.after_imports.first().copied())?
    }
}

/// Computes the launch digest of a plan.
///
/// # Errors
/// The plan is not for SEV-SNP.
pub fn measure(plan: &LaunchPlan) -> Result<Measurement, MeasureError> {
    let policy = snp_policy(plan)?;
    let mut digest = LaunchDigest::new();
    let after_imports = plan
        .imports
        .iter()
        .map(|import| {
            digest.add_import(import);
            digest.value()
        })
        .collect();
    let after_vcpus = digest.add_vcpus(&plan.vcpus, policy.vmsa_features);
    Ok(Measurement { after_imports, after_vcpus })
}

fn snp_policy(plan: &LaunchPlan) -> Result<&SnpPolicy, MeasureError> {
    match &plan.policy {
        Policy::Snp(policy) => Ok(policy),
        Policy::Plain | Policy::Tdx(_) => Err(MeasureError::NotSnp(plan.platform())),
    }
}
