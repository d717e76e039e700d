//! From a configuration to everything that a launch needs, without a look at /dev/kvm.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use casemate_config::{Acceptance, ByteSize, GuestConfig, Hex, Snp, Tdx};
use casemate_devices::legacy::AcpiPower;
use casemate_devices::legacy::fw_cfg::Items;
use casemate_launch::firmware::{self, FirmwareError, Flags};
use casemate_launch::linux::qemu_kernel::{self, PatchError};
use casemate_launch::linux::{BzImage, DirectBoot, DirectBootError, Kernel, KernelError};
use casemate_launch::loader_window::Payloads;
use casemate_launch::ovmf::{self, OvmfError, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_launch::{Bytes, GpaError, IdBlock, LaunchPlan, SnpIdentity, SnpPolicy, TdxPolicy};

use crate::acpi;
use crate::board::{ACPI_TABLES, Board, port};
use crate::firmware_config::{self, BootFiles};
use crate::igvm::{self, IgvmLaunchError};

/// SEV_FEATURES with nothing but SEV-SNP, so that one digest holds on all hosts.
const SNP_ACTIVE: u64 = 1;

/// Why a guest cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file cannot be read.
    #[error("could not read {}", file.display())]
    File {
        /// Which one.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel is of no kind that can be booted.
    #[error("could not boot kernel = {file:?}, which has to be {wanted}")]
    Kernel {
        /// The file.
        file: PathBuf,
        /// The kinds that would be right.
        wanted: &'static str,
        /// Why.
        source: KernelError,
    },
    /// The kernel, or its initrd, does not fit the guest.
    #[error("could not boot kernel = {file:?} with memory = {memory}; {}", remedy(source))]
    Boot {
        /// The kernel.
        file: PathBuf,
        /// The guest's memory.
        memory: ByteSize,
        /// Why.
        source: DirectBootError,
    },
    /// The firmware cannot start the guest.
    #[error("could not start the guest with {}", named(file.as_deref()))]
    Firmware {
        /// The image; `None` is the one of this program.
        file: Option<PathBuf>,
        /// Why.
        source: FirmwareError,
    },
    /// The TDVF cannot start the guest.
    #[error(
        "could not start the guest with firmware = {file:?}, which has to be a TDVF or an edition \
         of Casemate's firmware"
    )]
    Tdvf {
        /// The image.
        file: PathBuf,
        /// Why.
        source: casemate_launch::tdvf::SourceError,
    },
    /// OVMF cannot start the guest.
    #[error(
        "could not start the guest with firmware = {file:?}, which has to be OVMF or an edition of \
         Casemate's firmware"
    )]
    Ovmf {
        /// The image.
        file: PathBuf,
        /// Why.
        source: OvmfError,
    },
    /// The kernel cannot be given to OVMF as QEMU does.
    #[error("could not prepare kernel = {file:?} for OVMF, for which it has to be a bzImage")]
    Patch {
        /// The kernel.
        file: PathBuf,
        /// Why.
        source: PatchError,
    },
    /// The IGVM file cannot be launched.
    #[error("could not launch igvm = {file:?}, which has to be an IGVM file for the platform")]
    Igvm {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<IgvmLaunchError>,
    },
    /// The memory cannot be laid out.
    #[error("could not lay out {bytes} bytes of guest memory")]
    Memory {
        /// How much it is.
        bytes: u64,
        /// Why.
        source: GpaError,
    },
    /// The configuration asks for what a plain guest has not.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// What to do about a kernel that does not fit.
const fn remedy(error: &DirectBootError) -> &'static str {
    match error {
        DirectBootError::CommandLine { .. } => "shorten cmdline",
        DirectBootError::Entry(_) => "give another kernel",
        DirectBootError::NoRoomForInitrd { .. } => "raise memory, or give a smaller initrd",
        _ => "raise memory",
    }
}

/// The name of a firmware of ours.
fn named(file: Option<&Path>) -> String {
    file.map_or("the firmware of this program".into(), |file| format!("firmware = {file:?}"))
}

/// A guest that is ready to be launched, any number of times.
pub struct Guest {
    pub(crate) config: GuestConfig,
    pub(crate) board: Board,
    pub(crate) plan: LaunchPlan,
    /// Of a guest whose firmware is not ours, and expects QEMU's q35 machine.
    pub(crate) firmware_config: Option<Items>,
}

impl Guest {
    /// Reads what `config` names and lays it out. A plain guest boots its kernel directly, or
    /// with our firmware on the way that an encrypted one takes, or with OVMF.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn plain(config: GuestConfig) -> Result<Self, PrepareError> {
        // Only who wants to see our firmware at work has it in a plain guest.
        if config.firmware.is_none() && !config.firmware_log {
            let file = config.kernel.clone().ok_or(PrepareError::Unsupported(
                "plain guests boot a kernel: give one with --kernel or in the configuration",
            ))?;
            let plan = booted_directly(&config, &board(&config)?, file)?;
            return Self::ours(config, plan);
        }
        match Firmware::of(&config)? {
            Firmware::Ovmf { file, image } => {
                let failed = |source| PrepareError::Ovmf { file, source };
                let plan = ovmf::plain_plan(&image).map_err(failed)?;
                let boot = boot_files(&config)?;
                Self::like_q35(config, plan, boot.as_ref())
            }
            Firmware::Ours { image } => {
                let plan = firmware::plain_plan(&image, flags(&config), &payloads(&config)?)
                    .map_err(|source| Firmware::refused(&config, source))?;
                Self::ours(config, plan)
            }
        }
    }

    /// Reads what `config` names and lays out an SEV-SNP guest, which our firmware starts (the one
    /// that is named, or the one that comes with this program), or OVMF, or an IGVM file.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn snp(config: GuestConfig) -> Result<Self, PrepareError> {
        let snp = config.snp.clone().unwrap_or_default();
        let identity = identity(&config, &snp)?;
        if let Some(file) = &config.igvm {
            let plan = igvm::snp(&config, identity)
                .map_err(|source| PrepareError::Igvm { file: file.clone(), source })?;
            return Self::like_q35(config, plan, None);
        }
        let policy = SnpPolicy { guest_policy: snp.guest_policy(), vmsa_features: SNP_ACTIVE };
        match Firmware::of(&config)? {
            Firmware::Ovmf { file, image } => {
                let boot = boot_files(&config)?;
                let signature = snp.vcpu_type.as_ref().map(|model| model.signature);
                let options = SnpOptions {
                    profile: Profile::Qemu,
                    vcpus: config.vcpus,
                    cpu_signature: signature.unwrap_or_else(this_machines_signature),
                    policy,
                    kernel: boot.as_ref().map(BootFiles::hashes),
                    identity,
                };
                let failed = |source| PrepareError::Ovmf { file, source };
                let plan = ovmf::snp_plan(&image, &options).map_err(failed)?;
                Self::like_q35(config, plan, boot.as_ref())
            }
            Firmware::Ours { image } => {
                let (flags, payloads) = (flags(&config), payloads(&config)?);
                let plan = firmware::snp_guest(&image, flags, &payloads, policy, identity)
                    .map_err(|source| Firmware::refused(&config, source))?;
                Self::ours(config, plan)
            }
        }
    }

    /// Reads what `config` names and lays out a TDX guest, which the TDVF starts that is named, or
    /// our firmware (the one that is named, or the one that comes with this program), or an IGVM
    /// file.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn tdx(config: GuestConfig) -> Result<Self, PrepareError> {
        let policy = policy(&config, &config.tdx.clone().unwrap_or_default());
        if let Some(file) = &config.igvm {
            let plan = igvm::tdx(&config, &policy)
                .map_err(|source| PrepareError::Igvm { file: file.clone(), source })?;
            return Self::like_q35(config, plan, None);
        }
        match Firmware::of(&config)? {
            Firmware::Ovmf { file, image } => {
                let ram: Vec<_> = q35_board(&config)?.ram().collect();
                let plan = casemate_launch::tdvf::plan(&image, &ram, config.vcpus, policy)
                    .map_err(|source| PrepareError::Tdvf { file, source })?;
                let boot = boot_files(&config)?.map(|boot| boot.patched(&config)).transpose()?;
                Self::like_q35(config, plan, boot.as_ref())
            }
            Firmware::Ours { image } => {
                let plan = firmware::tdx_guest(&image, flags(&config), &payloads(&config)?, policy)
                    .map_err(|source| Firmware::refused(&config, source))?;
                Self::ours(config, plan)
            }
        }
    }

    /// A guest that finds in memory all that it needs to know.
    fn ours(config: GuestConfig, plan: LaunchPlan) -> Result<Self, PrepareError> {
        let board = board(&config)?;
        Ok(Self { config, board, plan, firmware_config: None })
    }

    /// A guest whose firmware asks for what it needs to know.
    fn like_q35(
        config: GuestConfig,
        plan: LaunchPlan,
        boot: Option<&BootFiles>,
    ) -> Result<Self, PrepareError> {
        let board = q35_board(&config)?;
        let items = firmware_config::items(&board, config.vcpus, boot);
        Ok(Self { config, board, plan, firmware_config: Some(items) })
    }

    /// The configuration it was made from.
    #[must_use]
    pub const fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// What enters its memory.
    #[must_use]
    pub const fn plan(&self) -> &LaunchPlan {
        &self.plan
    }
}

fn booted_directly(
    config: &GuestConfig,
    board: &Board,
    file: PathBuf,
) -> Result<LaunchPlan, PrepareError> {
    let wanted = "a bzImage or an ELF file";
    let kernel = Kernel::parse(&read(&file)?).map_err(|source| PrepareError::Kernel {
        file: file.clone(),
        wanted,
        source,
    })?;
    let initrd = config.initrd.as_deref().map(read).transpose()?;
    let boot = DirectBoot {
        kernel: &kernel,
        initrd: initrd.as_ref(),
        cmdline: &config.cmdline,
        memory: &board.memory_map(),
        acpi: acpi::tables(ACPI_TABLES.start, config.vcpus),
        reset_code: &reset_code(),
    };
    let memory = config.memory;
    boot.plan().map_err(|source| PrepareError::Boot { file, memory, source })
}

/// The firmware of a guest.
enum Firmware {
    /// An edition of our own.
    Ours { image: Arc<[u8]> },
    /// Anything else.
    Ovmf { file: PathBuf, image: Arc<[u8]> },
}

impl Firmware {
    /// The one that is named, or the one that comes with this program.
    fn of(config: &GuestConfig) -> Result<Self, PrepareError> {
        let flags = flags(config);
        let Some(file) = config.firmware.clone() else {
            return Ok(Self::Ours { image: Arc::from(casemate_firmware_image::image(flags.log)) });
        };
        let image: Arc<[u8]> = Arc::from(&*read(&file)?);
        let ours = firmware::is_ours(&image);
        if !ours && flags != Flags::default() {
            return Err(PrepareError::Unsupported(
                "accept_memory and firmware_log are for Casemate's firmware: leave them out, or \
                 firmware",
            ));
        }
        Ok(if ours { Self::Ours { image } } else { Self::Ovmf { file, image } })
    }

    /// The error of a firmware of ours.
    fn refused(config: &GuestConfig, source: FirmwareError) -> PrepareError {
        PrepareError::Firmware { file: config.firmware.clone(), source }
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

fn board(config: &GuestConfig) -> Result<Board, PrepareError> {
    let bytes = config.memory.0;
    Board::new(bytes).map_err(|source| PrepareError::Memory { bytes, source })
}

fn q35_board(config: &GuestConfig) -> Result<Board, PrepareError> {
    let bytes = config.memory.0;
    Board::like_q35(bytes).map_err(|source| PrepareError::Memory { bytes, source })
}

/// What QEMU would take from this machine with `-cpu host`.
fn this_machines_signature() -> CpuSignature {
    CpuSignature(std::arch::x86_64::__cpuid(1).eax)
}

/// What OVMF is to start, if it is a kernel.
fn boot_files(config: &GuestConfig) -> Result<Option<BootFiles>, PrepareError> {
    let Some(file) = &config.kernel else { return Ok(None) };
    let kernel = read(file)?;
    // Whatever OVMF cannot start is refused here, where somebody can read why.
    BzImage::parse(&kernel).map_err(|source| PrepareError::Kernel {
        file: file.clone(),
        wanted: "a bzImage, as OVMF starts it",
        source: source.into(),
    })?;
    let initrd = config.initrd.as_deref().map(read).transpose()?.unwrap_or_default();
    Ok(Some(BootFiles { kernel, initrd, cmdline: config.cmdline.clone() }))
}

impl BootFiles {
    /// With what QEMU writes into the header of a kernel whose hash nobody checks, so that run-time
    /// measurements are those that a guest of QEMU's has.
    fn patched(self, config: &GuestConfig) -> Result<Self, PrepareError> {
        let initrd = (!self.initrd.is_empty()).then_some(self.initrd.len() as u64);
        let kernel =
            qemu_kernel::patch(&self.kernel, initrd, config.memory.0).map_err(|source| {
                PrepareError::Patch { file: config.kernel.clone().unwrap_or_default(), source }
            })?;
        Ok(Self { kernel: kernel.into(), ..self })
    }
}

fn payloads(config: &GuestConfig) -> Result<Payloads, PrepareError> {
    let kernel = config.kernel.as_deref().ok_or(PrepareError::Unsupported(
        "Casemate's firmware boots a kernel: give one with --kernel or in the configuration",
    ))?;
    Ok(Payloads {
        kernel: read(kernel)?,
        initrd: config.initrd.as_deref().map(read).transpose()?.unwrap_or_default(),
        cmdline: config.cmdline.as_bytes().into(),
        memory: config.memory.0,
        vcpus: config.vcpus,
    })
}

fn identity(config: &GuestConfig, snp: &Snp) -> Result<SnpIdentity, PrepareError> {
    let id_block = match (&snp.id_block, &snp.id_authentication) {
        (Some(block), Some(authentication)) => {
            let authentication: Box<[u8; 4096]> = exactly(authentication)?;
            // The algorithm of the author key; 0 says that there is none.
            let author_key = authentication[4..8] != [0; 4];
            Some(IdBlock { block: exactly(block)?, authentication, author_key })
        }
        _ => None,
    };
    let host_data = config.host_data();
    Ok(SnpIdentity { host_data, id_block, vcek_disabled: snp.vcek_disabled })
}

fn policy(config: &GuestConfig, tdx: &Tdx) -> TdxPolicy {
    let value = |value: &Option<Hex<48>>| value.as_ref().map_or([0; 48], |value| value.0);
    TdxPolicy {
        mrconfigid: config.mrconfigid(),
        mrowner: value(&tdx.mrowner),
        mrownerconfig: value(&tdx.mrownerconfig),
        xfam: tdx.xfam(),
        ..TdxPolicy::new(tdx.attributes())
    }
}

/// A file of `N` bytes.
fn exactly<const N: usize>(file: &Path) -> Result<Box<[u8; N]>, PrepareError> {
    let bytes: Box<[u8]> = read(file)?[..].into();
    bytes.try_into().map_err(|bytes: Box<[u8]>| {
        let wrong = format!("it has {} bytes instead of {N}", bytes.len());
        let source = io::Error::new(io::ErrorKind::InvalidData, wrong);
        PrepareError::File { file: file.into(), source }
    })
}

fn read(file: &Path) -> Result<Bytes, PrepareError> {
    let bytes =
        std::fs::read(file).map_err(|source| PrepareError::File { file: file.into(), source })?;
    Ok(bytes.into())
}

/// Writes to the reset register, and waits for the end.
fn reset_code() -> [u8; 9] {
    let [low, high] = (port::POWER + AcpiPower::RESET).to_le_bytes();
    // mov dx, register; mov al, value; out dx, al; hlt; jmp to the hlt.
    [0xba, low, high, 0xb0, AcpiPower::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}
