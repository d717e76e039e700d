//! Guests that start in firmware: Casemate's own, OVMF, or a TDVF.

use std::path::PathBuf;
use std::sync::Arc;

use casemate_config::{Acceptance, GuestConfig, VcpuType};
use casemate_launch::firmware::{self, FirmwareError, Flags};
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::rules::{CpuSignature, Profile};
use casemate_launch::snp::FirmwareDigest;
use casemate_launch::{Digest384, GpaRange, LaunchPlan, PlatformKind, svsm, tdvf};

use crate::files::{MAX_FIRMWARE, boot_files, payloads, read};
use crate::{Board, Boot, BootFiles, GuestPlan, PlanError, Rules, Svsm, policy};

/// The firmware of a guest.
struct Image {
    /// `None` for the one in this program.
    file: Option<PathBuf>,
    bytes: Arc<[u8]>,
}

pub(crate) fn plan(
    config: &GuestConfig,
    platform: PlatformKind,
    rules: &Rules,
) -> Result<GuestPlan, PlanError> {
    let image = Image::of(config)?;
    let ours = firmware::is_ours(&image.bytes);
    match (rules.launcher, ours) {
        (Some(Profile::CloudHypervisor), _) => Err(PlanError::NeedsIgvm),
        (None | Some(Profile::Casemate), true) => own(config, platform, rules, &image),
        // Another launcher would take it for an OVMF, which has no loader window.
        (_, true) if platform == PlatformKind::Tdx => own(config, platform, rules, &image),
        (Some(Profile::Casemate), false) => Err(image.refused(FirmwareError::NotOurs)),
        _ if flags(config) != Flags::default() => Err(PlanError::OwnFirmwareKeys),
        _ => ovmf(config, platform, rules, &image),
    }
}

impl Image {
    /// The one that is named, or the one in this program.
    fn of(config: &GuestConfig) -> Result<Self, PlanError> {
        let file = config.firmware.clone();
        let bytes: Arc<[u8]> = match &file {
            Some(file) => read("firmware", file, MAX_FIRMWARE)?.into(),
            None => Arc::from(casemate_firmware_image::image(config.firmware_log)),
        };
        Ok(Self { file, bytes })
    }

    fn refused(&self, source: FirmwareError) -> PlanError {
        PlanError::Firmware { file: self.file.clone(), source }
    }
}

/// What our firmware does otherwise than usual.
fn flags(config: &GuestConfig) -> Flags {
    Flags {
        accept_all: config.accept_memory == Acceptance::Eager,
        log: config.firmware_log,
        ..Flags::default()
    }
}

fn own(
    config: &GuestConfig,
    platform: PlatformKind,
    rules: &Rules,
    image: &Image,
) -> Result<GuestPlan, PlanError> {
    let (flags, payloads) = (flags(config), payloads(config)?);
    let launch = match platform {
        PlatformKind::Plain => firmware::plain_plan(&image.bytes, flags, &payloads),
        PlatformKind::Snp => {
            let (policy, identity) = (policy::snp(config, rules), policy::snp_identity(config)?);
            firmware::snp_guest(&image.bytes, flags, &payloads, policy, identity)
        }
        PlatformKind::Tdx => {
            firmware::tdx_guest(&image.bytes, flags, &payloads, policy::tdx(config))
        }
    };
    let launch = launch.map_err(|source| image.refused(source))?;
    let board = Board::new(config.memory.0).map_err(|source| PlanError::memory(config, source))?;
    Ok(GuestPlan { launch, board, boot: Boot::Window(payloads), launcher: Profile::Casemate })
}

fn ovmf(
    config: &GuestConfig,
    platform: PlatformKind,
    rules: &Rules,
    image: &Image,
) -> Result<GuestPlan, PlanError> {
    let memory = |source| PlanError::memory(config, source);
    let board = Board::like_q35(config.memory.0).map_err(memory)?;
    let boot = boot_files(config, rules)?;
    let file = image.file.clone().unwrap_or_default();
    let launch = match platform {
        PlatformKind::Plain => {
            ovmf::plain_plan(&image.bytes).map_err(|source| PlanError::Ovmf { file, source })?
        }
        PlatformKind::Snp => {
            let options = snp_options(config, rules, boot.as_ref())?;
            match &rules.svsm {
                Some(below) => with_svsm(&image.bytes, below, &options)?,
                None => ovmf::snp_plan(&image.bytes, &options)
                    .map_err(|source| PlanError::Ovmf { file, source })?,
            }
        }
        PlatformKind::Tdx => {
            let ram: Vec<GpaRange> = board.ram().collect();
            tdvf::plan(&image.bytes, &ram, config.vcpus, policy::tdx(config))
                .map_err(|source| PlanError::Tdvf { file, source })?
        }
    };
    Ok(GuestPlan {
        launch,
        board,
        boot: Boot::FirmwareConfig(boot),
        launcher: rules.launcher.unwrap_or_default(),
    })
}

fn with_svsm(
    firmware: &Arc<[u8]>,
    below: &Svsm,
    options: &SnpOptions,
) -> Result<LaunchPlan, PlanError> {
    if !matches!(options.profile, Profile::Qemu | Profile::QemuBefore10_2) {
        return Err(PlanError::SvsmLauncher);
    }
    let image: Arc<[u8]> = read("SVSM", &below.file, MAX_FIRMWARE)?.into();
    svsm::snp_plan(firmware, &image, below.variables, options)
        .map_err(|source| PlanError::Svsm { file: below.file.clone(), source })
}

/// Computes the launch digest of the SEV-SNP guest that `config` describes, started in a firmware of
/// which only the published digest is known. The guest itself has no plan without its firmware.
///
/// # Errors
/// As for [`plan`](crate::plan), of OVMF.
pub fn launch_digest(
    firmware: &FirmwareDigest,
    config: &GuestConfig,
    rules: &Rules,
) -> Result<Digest384, PlanError> {
    match rules.launcher {
        Some(Profile::CloudHypervisor) => return Err(PlanError::NeedsIgvm),
        Some(Profile::Casemate) => return Err(PlanError::OwnFirmwareDigest),
        _ => {}
    }
    let boot = boot_files(config, rules)?;
    let options = snp_options(config, rules, boot.as_ref())?;
    firmware.launch_digest(&options).map_err(PlanError::FirmwareDigest)
}

fn snp_options(
    config: &GuestConfig,
    rules: &Rules,
    boot: Option<&BootFiles>,
) -> Result<SnpOptions, PlanError> {
    let profile = rules.launcher.unwrap_or_default();
    let model = config.snp.as_ref().and_then(|snp| snp.vcpu_type.as_ref());
    let cpu_signature = match model.map(VcpuType::signature) {
        _ if !profile.uses_signature() => CpuSignature(0),
        Some(signature) => signature.ok_or(PlanError::NoHostModel)?,
        None => return Err(PlanError::NoModel { launcher: profile.name() }),
    };
    Ok(SnpOptions {
        profile,
        vcpus: config.vcpus,
        cpu_signature,
        policy: policy::snp(config, rules),
        kernel: boot.map(BootFiles::hashes),
        identity: policy::snp_identity(config)?,
    })
}
