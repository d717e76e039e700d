//! Which guest has a given launch digest? Tries everything that plausibly differs between hosts.

use std::sync::Arc;

use super::LaunchDigest;
use crate::rules::{CpuSignature, Profile, RESET_VECTOR};
use crate::source::kernel_hashes::KernelHashes;
use crate::source::ovmf::{self, OvmfError};
use crate::source::sev_metadata::SevMetadata;
use crate::{Digest384, InitialVcpu};

/// Known inputs of the guest.
pub struct Inputs<'a> {
    /// The firmware image.
    pub image: &'a Arc<[u8]>,
    /// Kernel hashes that are possible, with what is special about each; empty if no kernel was
    /// given.
    pub kernels: &'a [(KernelHashes, &'static str)],
    /// The most vCPUs to try.
    pub most_vcpus: u32,
}

/// Explanation of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whose registers.
    pub profile: Profile,
    /// How many vCPUs.
    pub vcpus: u32,
    /// Of the CPU model; `None` if this profile's registers do not depend on it.
    pub signature: Option<CpuSignature>,
    /// SEV_FEATURES.
    pub features: u64,
    /// Peculiarity of the kernel hashes; `None` if they are not measured.
    pub kernel: Option<&'static str>,
    /// Whether the host's kernel leaves MXCSR and the x87 control word at zero.
    pub old_fpu: bool,
}

/// SEV_FEATURES that hosts have: plain, debug swap, secure TSC, both, and without SNP's own bit as
/// some calculators were asked.
const FEATURES: [u64; 5] = [0x1, 0x21, 0x201, 0x221, 0x0];

/// Tries plausible guests until one has the digest; `None` if none has.
///
/// # Errors
/// The image cannot be measured at all.
pub fn search(digest: Digest384, inputs: &Inputs<'_>) -> Result<Option<Explanation>, OvmfError> {
    let metadata = SevMetadata::parse(inputs.image)?;
    let mut seed = LaunchDigest::new();
    seed.add_import(&ovmf::firmware_import(inputs.image)?);
    let mut kernels: Vec<_> =
        inputs.kernels.iter().map(|(hashes, what)| (Some(hashes), Some(*what))).collect();
    // A firmware that ignores the kernel leaves it unmeasured.
    kernels.push((None, None));
    for profile in [Profile::Qemu, Profile::Ec2, Profile::Gce, Profile::Krun] {
        for (hashes, kernel) in &kernels {
            let Ok(imports) = ovmf::section_imports(&metadata, profile, *hashes) else { continue };
            let mut pages = seed;
            imports.iter().for_each(|import| pages.add_import(import));
            let found = search_vcpus(digest, pages, profile, &metadata, inputs.most_vcpus);
            if let Some(found) = found {
                return Ok(Some(Explanation { kernel: *kernel, ..found }));
            }
        }
    }
    Ok(None)
}

fn search_vcpus(
    digest: Digest384,
    pages: LaunchDigest,
    profile: Profile,
    metadata: &SevMetadata,
    most_vcpus: u32,
) -> Option<Explanation> {
    let mut signatures: Vec<_> =
        CpuSignature::known().map(|(_, signature)| Some(signature)).collect();
    if !profile.uses_signature() {
        signatures = vec![None];
    }
    let old_fpu_differs = profile.runs_on_kvm();
    for old_fpu in [false, true].into_iter().filter(|old| !old || old_fpu_differs) {
        for &signature in &signatures {
            for features in FEATURES {
                let of = |entry| vcpu(profile, entry, signature, old_fpu);
                let others = profile.ap_entry(metadata.ap_reset).map(of);
                let count = usize::try_from(most_vcpus).ok()?;
                let others = others.into_iter().cycle().take(count.saturating_sub(1));
                let vcpus: Vec<_> = std::iter::once(of(RESET_VECTOR)).chain(others).collect();
                let after = pages.clone().add_vcpus(&vcpus, features);
                if let Some(at) = after.iter().position(|found| *found == digest) {
                    let vcpus = u32::try_from(at).ok()? + 1;
                    let kernel = None;
                    return Some(Explanation {
                        profile,
                        vcpus,
                        signature,
                        features,
                        kernel,
                        old_fpu,
                    });
                }
            }
        }
    }
    None
}

fn vcpu(
    profile: Profile,
    entry: u32,
    signature: Option<CpuSignature>,
    old_fpu: bool,
) -> InitialVcpu {
    let mut vcpu = profile.vcpu(entry, signature.unwrap_or(CpuSignature(0)));
    if old_fpu {
        (vcpu.mxcsr, vcpu.x87_fcw) = (0, 0);
    }
    vcpu
}
