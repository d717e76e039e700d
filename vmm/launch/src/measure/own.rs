//! The guest of Casemate's own firmware that has a given measurement. Tries everything that the config
//! page of the firmware can say.

use super::cores::find_first;
use super::snp;
use super::tdx::{self, PageOrder};
use crate::rules::{CpuSignature, Profile};
use crate::source::firmware::{self, FirmwareError, Flags, Limits};
use crate::source::kernel_hashes::KernelHashes;
use crate::source::ovmf::SnpOptions;
use crate::{Digest384, PlatformKind, SnpIdentity, SnpPolicy, TdxPolicy};

/// What is known about the guest.
pub struct Inputs<'a> {
    /// The image of the firmware.
    pub image: &'a [u8],
    /// Whether the image is the edition that logs.
    pub logs: bool,
    /// Kernel hashes that are possible, with what is special about each.
    pub kernels: &'a [(KernelHashes, &'static str)],
    /// Sizes of memory to try, in bytes.
    pub memory: &'a [u64],
    /// The most vCPUs to try.
    pub most_vcpus: u32,
}

/// What explains a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether the firmware accepts all memory.
    pub accept_all: bool,
    /// Whether the firmware logs.
    pub log: bool,
    /// What is special about the kernel hashes.
    pub kernel: &'static str,
}

/// Tries plausible guests until one has the measurement; `None` if none has.
///
/// # Errors
/// The image cannot be measured at all.
pub fn search(
    measurement: Digest384,
    platform: PlatformKind,
    inputs: &Inputs<'_>,
) -> Result<Option<Explanation>, FirmwareError> {
    for (hashes, kernel) in inputs.kernels {
        for accept_all in [false, true] {
            let flags = Flags { accept_all, log: inputs.logs, ..Flags::default() };
            for &memory in inputs.memory {
                let measured = |vcpus| {
                    let limits = Limits { memory, vcpus };
                    measured(platform, inputs.image, flags, hashes, limits)
                };
                // An image that is refused is refused for any number of vCPUs.
                measured(1)?;
                let vcpus = find_first(1..=inputs.most_vcpus, |vcpus| {
                    measured(vcpus).is_ok_and(|all| all.contains(&measurement))
                });
                if let Some(vcpus) = vcpus {
                    let log = inputs.logs;
                    return Ok(Some(Explanation { vcpus, memory, accept_all, log, kernel }));
                }
            }
        }
    }
    Ok(None)
}

/// The measurements that a guest can have: of a TDX guest one for each order of pages.
fn measured(
    platform: PlatformKind,
    image: &[u8],
    flags: Flags,
    kernel: &KernelHashes,
    limits: Limits,
) -> Result<Vec<Digest384>, FirmwareError> {
    if platform == PlatformKind::Tdx {
        let plan = firmware::tdx_plan(image, flags, kernel, limits, TdxPolicy::new(0))?;
        let orders = [PageOrder::PerPage, PageOrder::TwoPass];
        return Ok(orders.into_iter().filter_map(|order| tdx::mrtd(&plan, order).ok()).collect());
    }
    let options = SnpOptions {
        profile: Profile::Casemate,
        vcpus: limits.vcpus,
        cpu_signature: CpuSignature(0),
        policy: SnpPolicy { guest_policy: 0, vmsa_features: 1 },
        kernel: Some(*kernel),
        identity: SnpIdentity::default(),
    };
    let plan = firmware::snp_plan(image, flags, &options, limits.memory)?;
    Ok(snp::measure(&plan).map(|measured| measured.launch_digest()).into_iter().collect())
}
