//! The manifest of an SNP guest.

use super::{MeasureError, VMSA_GPA, measure, snp_policy};
use crate::measure::manifest::{Manifest, MeasuredRange, RangeKind};
use crate::plan::{VmsaPage, registers};
use crate::{Digest384, LaunchPlan, PAGE_SIZE, PlatformKind};

/// Lists everything that the launch digest of a plan is made of.
///
/// # Errors
/// The plan is not for SEV-SNP.
pub fn manifest(plan: &LaunchPlan) -> Result<Manifest, MeasureError> {
    let features = snp_policy(plan)?.vmsa_features;
    let measurement = measure(plan)?;
    let imports = plan.imports.iter().zip(measurement.after_imports);
    let imports = imports.filter_map(|(import, after)| MeasuredRange::of_import(import, after));
    let vcpus = plan.vcpus.iter().zip(measurement.after_vcpus).enumerate();
    let vmsas = vcpus.map(|(index, (vcpu, running_digest))| MeasuredRange {
        order: 0,
        address: VMSA_GPA,
        length: PAGE_SIZE,
        kind: RangeKind::Vmsa,
        sha384: Some(Digest384::of(&VmsaPage::new(vcpu, features).0)),
        running_digest,
        tag: format!("VMSA of vCPU {index}"),
        registers: registers(vcpu, features),
        config_page: None,
    });
    Ok(Manifest::new(PlatformKind::Snp, imports.chain(vmsas)))
}
