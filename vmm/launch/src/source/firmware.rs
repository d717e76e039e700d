//! Our own firmware as the source of a plan.
//!
//! The image is measured like OVMF, page by page from its end at 4 GiB downwards in address, with
//! the sections of its SEV metadata. What is different: the hashes of kernel, initial RAM disk and
//! command line stand in the image itself, in its config page, which is filled in here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use casemate_firmware_logic::config::{CONFIG_GUID, CONFIG_SIZE};
pub use casemate_firmware_logic::config::{Config, Flags, Platform};
use casemate_firmware_logic::layout::LOW_MEMORY_END;
use serde::{Deserialize, Serialize};

use super::guid_table::{GuidTable, GuidTableError};
use super::kernel_hashes::KernelHashes;
use super::loader_window::{self, LoaderWindowError, Payloads};
use super::ovmf::{self, OvmfError, SnpOptions};
use super::tdvf::{self, SourceError};
use crate::rules::{CpuSignature, Profile};
use crate::{Digest384, Gpa, GpaRange, Guid, LaunchPlan, SnpIdentity, SnpPolicy, TdxPolicy};

/// The config page of our firmware, which is measured like the rest of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigPage {
    /// Fields by name; digests in hexadecimal.
    pub values: BTreeMap<String, String>,
    /// SHA-384 of the image with zeroes for this page.
    pub rest_sha384: Digest384,
}

/// Memory and vCPUs that a guest has at most. They are measured: a host that gives it more, or claims
/// so, launches a guest that ends, or another measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
}

impl Limits {
    /// Those of the guest that is launched with `payloads`.
    #[must_use]
    pub const fn of(payloads: &Payloads) -> Self {
        Self { memory: payloads.memory, vcpus: payloads.vcpus }
    }
}

/// TD attributes (Intel TDX module ABI, "ATTRIBUTES"): the host may read the guest.
const DEBUG: u64 = 1;

/// Why an image is not our firmware, or makes no plan. Offsets count from the start of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FirmwareError {
    #[error(transparent)]
    Table(#[from] GuidTableError),
    #[error(
        "the GUID table has no entry {guid}: this is not Casemate's firmware (for OVMF, choose the \
         profile qemu)",
        guid = Guid(CONFIG_GUID)
    )]
    NotOurs,
    #[error("entry {guid} of the GUID table has {found} bytes of data instead of 4", guid = Guid(CONFIG_GUID))]
    EntrySize { found: usize },
    #[error(
        "the config page starts {from_end:#x} bytes before the end of the image of {length:#x} bytes, \
         which is not a valid place for a page"
    )]
    Place { from_end: u32, length: usize },
    #[error("Casemate's firmware needs a kernel: set kernel, or give another firmware")]
    NoKernel,
    #[error(
        "this edition of Casemate's firmware logs its steps, and starts only guests with firmware_log: \
         add firmware_log = true, or give the edition that does not log"
    )]
    Logs,
    #[error(
        "this edition of Casemate's firmware does not log its steps, and starts only guests without \
         firmware_log: remove it, or give the edition that `casemate firmware --log` writes"
    )]
    DoesNotLog,
    #[error(
        "Casemate's firmware does not start trust domains that the host can debug: remove debug, or \
         give a TDVF as firmware"
    )]
    Debug,
    #[error(transparent)]
    Image(#[from] OvmfError),
    #[error(transparent)]
    Tdvf(#[from] SourceError),
    #[error(transparent)]
    Window(#[from] LoaderWindowError),
}

/// Config page of a guest with this kernel and these limits.
#[must_use]
pub fn config(platform: Platform, flags: Flags, kernel: &KernelHashes, limits: Limits) -> Config {
    Config {
        platform,
        flags,
        most_memory: limits.memory,
        most_vcpus: limits.vcpus,
        kernel: kernel.kernel,
        initrd: kernel.initrd,
        command_line: kernel.cmdline,
    }
}

/// The image with its config page filled in.
///
/// # Errors
/// The image has no GUID table that leads to a config page, or is the edition that logs where the
/// page says that it does not, or the other way round: such a guest would end at once.
pub fn configure(image: &[u8], config: &Config) -> Result<Arc<[u8]>, FirmwareError> {
    let place = config_page(image)?;
    match (logs(image), config.flags.log) {
        (true, false) => return Err(FirmwareError::Logs),
        (false, true) => return Err(FirmwareError::DoesNotLog),
        _ => {}
    }
    let mut image: Arc<[u8]> = Arc::from(image);
    // Nobody else has this copy yet, so nothing is copied again.
    Arc::make_mut(&mut image)[place].copy_from_slice(&config.to_page());
    Ok(image)
}

/// Whether an image is our firmware.
#[must_use]
pub fn is_ours(image: &[u8]) -> bool {
    config_page(image).is_ok()
}

/// Whether an image is the edition for development: only that one has the first line of its log.
#[must_use]
pub fn logs(image: &[u8]) -> bool {
    const WORD: &[u8] = b"an image for development";
    image.windows(WORD.len()).any(|bytes| bytes == WORD)
}

/// Range of the config page in the image.
fn config_page(image: &[u8]) -> Result<Range<usize>, FirmwareError> {
    let entry = GuidTable::parse(image)?.find(Guid(CONFIG_GUID)).ok_or(FirmwareError::NotOurs)?;
    let from_end: [u8; 4] =
        entry.try_into().map_err(|_| FirmwareError::EntrySize { found: entry.len() })?;
    let from_end = u32::from_le_bytes(from_end);
    let wrong = FirmwareError::Place { from_end, length: image.len() };
    let start = usize::try_from(from_end).ok().and_then(|back| image.len().checked_sub(back));
    let start = start.filter(|start| start.is_multiple_of(CONFIG_SIZE)).ok_or(wrong.clone())?;
    let place = start..start + CONFIG_SIZE;
    if place.end > image.len() { Err(wrong) } else { Ok(place) }
}

/// Config page of an image, if it is Casemate's firmware and the page is filled in.
pub(crate) fn config_page_of(image: &[u8]) -> Option<ConfigPage> {
    let place = config_page(image).ok()?;
    let config = Config::from_page(image.get(place.clone())?.try_into().ok()?)?;
    let Flags { unmeasured_payload, accept_all, log } = config.flags;
    let hex = |digest: [u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let values = [
        ("kernel's SHA-256", hex(config.kernel)),
        ("initial RAM disk's SHA-256", hex(config.initrd)),
        ("SHA-256 of the command line with its NUL", hex(config.command_line)),
        ("accept_memory", if accept_all { "eager" } else { "lazy" }.into()),
        ("firmware_log", log.to_string()),
        ("unmeasured payload", unmeasured_payload.to_string()),
        ("most memory", format!("{:#x}", config.most_memory)),
        ("most vCPUs", config.most_vcpus.to_string()),
    ];
    let mut rest = image.to_vec();
    rest.get_mut(place)?.fill(0);
    let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Some(ConfigPage { values, rest_sha384: Digest384::of(&rest) })
}

/// The plan of an SNP guest of at most `memory` bytes that our firmware starts; `options.kernel` is
/// needed.
///
/// # Errors
/// There is no kernel, or the image is not our firmware or cannot be measured.
pub fn snp_plan(
    image: &[u8],
    flags: Flags,
    options: &SnpOptions,
    memory: u64,
) -> Result<LaunchPlan, FirmwareError> {
    config_page(image)?;
    let kernel = options.kernel.as_ref().ok_or(FirmwareError::NoKernel)?;
    let limits = Limits { memory, vcpus: options.vcpus };
    let image = configure(image, &config(Platform::Snp, flags, kernel, limits))?;
    // The hashes are in the image; a section for them, which only QEMU fills, stays empty.
    let options = SnpOptions { kernel: None, ..options.clone() };
    Ok(ovmf::snp_plan(&image, &options)?)
}

/// The whole plan of an SNP guest that our firmware starts: what [`snp_plan`] has, which is what is
/// measured, and the loader window with the payloads.
///
/// # Errors
/// The image is not our firmware, or the payloads do not fit it.
pub fn snp_guest(
    image: &[u8],
    flags: Flags,
    payloads: &Payloads,
    policy: SnpPolicy,
    identity: SnpIdentity,
) -> Result<LaunchPlan, FirmwareError> {
    let options = SnpOptions {
        profile: Profile::Casemate,
        vcpus: payloads.vcpus,
        cpu_signature: CpuSignature(0),
        policy,
        kernel: Some(KernelHashes::new(&payloads.kernel, &payloads.initrd, &payloads.cmdline)),
        identity,
    };
    let mut plan = snp_plan(image, flags, &options, payloads.memory)?;
    plan.imports.extend(loader_window::imports(payloads)?);
    Ok(plan)
}

/// The plan of a TDX guest that our firmware starts, as far as it is measured. Its MRTD depends on
/// memory and number of vCPUs by `limits` alone.
///
/// # Errors
/// The image is not our firmware or cannot be measured, or would end the guest.
pub fn tdx_plan(
    image: &[u8],
    flags: Flags,
    kernel: &KernelHashes,
    limits: Limits,
    policy: TdxPolicy,
) -> Result<LaunchPlan, FirmwareError> {
    if policy.attributes & DEBUG != 0 && !flags.unmeasured_payload {
        return Err(FirmwareError::Debug);
    }
    let image = configure(image, &config(Platform::Tdx, flags, kernel, limits))?;
    // The firmware does not read the list of resources: any memory that its sections are in does.
    let memory = GpaRange::from_bytes(Gpa(0), LOW_MEMORY_END).map_err(SourceError::from)?;
    Ok(tdvf::plan(&image, &[memory], limits.vcpus, policy)?)
}

/// The whole plan of a TDX guest that our firmware starts: what [`tdx_plan`] has, and the loader
/// window with the payloads.
///
/// # Errors
/// The image is not our firmware, or the payloads do not fit it.
pub fn tdx_guest(
    image: &[u8],
    flags: Flags,
    payloads: &Payloads,
    policy: TdxPolicy,
) -> Result<LaunchPlan, FirmwareError> {
    let hashes = KernelHashes::new(&payloads.kernel, &payloads.initrd, &payloads.cmdline);
    let mut plan = tdx_plan(image, flags, &hashes, Limits::of(payloads), policy)?;
    plan.imports.extend(loader_window::imports(payloads)?);
    Ok(plan)
}

/// The plan of a plain guest that our firmware starts. Nothing is measured, and the guest takes the
/// way that an encrypted one would.
///
/// # Errors
/// The image is not our firmware, or the payloads do not fit it.
pub fn plain_plan(
    image: &[u8],
    flags: Flags,
    payloads: &Payloads,
) -> Result<LaunchPlan, FirmwareError> {
    let hashes = KernelHashes::new(&payloads.kernel, &payloads.initrd, &payloads.cmdline);
    let image = configure(image, &config(Platform::Plain, flags, &hashes, Limits::of(payloads)))?;
    let mut plan = ovmf::plain_plan(&image)?;
    plan.imports.extend(loader_window::imports(payloads)?);
    Ok(plan)
}
