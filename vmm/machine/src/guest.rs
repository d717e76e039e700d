//! From a configuration to everything that a launch needs, without a look at /dev/kvm.

use std::io;
use std::path::{Path, PathBuf};

use casemate_config::{GuestConfig, Hex, Snp, Tdx};
use casemate_devices::legacy::AcpiPower;
use casemate_launch::firmware::{self, FirmwareError};
use casemate_launch::linux::{DirectBoot, DirectBootError, Kernel, KernelError};
use casemate_launch::loader_window::Payloads;
use casemate_launch::{Bytes, GpaError, IdBlock, LaunchPlan, SnpIdentity, SnpPolicy, TdxPolicy};

use crate::acpi;
use crate::board::{ACPI_TABLES, Board, port};

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
    #[error("could not boot {}", file.display())]
    Kernel {
        /// The file.
        file: PathBuf,
        /// Why.
        source: KernelError,
    },
    /// The kernel does not fit the guest.
    #[error("could not boot {} in a guest with {memory} bytes of memory", file.display())]
    Boot {
        /// The kernel.
        file: PathBuf,
        /// The guest's memory.
        memory: u64,
        /// Why.
        source: DirectBootError,
    },
    /// The firmware cannot start the guest.
    #[error("could not start the guest with the firmware {}", file.display())]
    Firmware {
        /// The image.
        file: PathBuf,
        /// Why.
        source: FirmwareError,
    },
    /// The TDVF cannot start the guest.
    #[error("could not start the guest with the TDVF {}", file.display())]
    Tdvf {
        /// The image.
        file: PathBuf,
        /// Why.
        source: casemate_launch::tdx::SourceError,
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

/// A guest that is ready to be launched, any number of times.
pub struct Guest {
    pub(crate) config: GuestConfig,
    pub(crate) board: Board,
    pub(crate) plan: LaunchPlan,
}

impl Guest {
    /// Reads what `config` names and lays it out. A plain guest boots its kernel directly, or
    /// with our firmware on the way that an encrypted one takes.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn plain(config: GuestConfig) -> Result<Self, PrepareError> {
        if config.igvm.is_some() {
            return Err(PrepareError::Unsupported(
                "plain guests boot a kernel: leave out igvm, or choose platform = \"snp\" or \
                 \"tdx\"",
            ));
        }
        let file = config.kernel.clone().ok_or(PrepareError::Unsupported(
            "plain guests boot a kernel: give one with --kernel or in the configuration",
        ))?;
        let memory = config.memory.0;
        let board =
            Board::new(memory).map_err(|source| PrepareError::Memory { bytes: memory, source })?;
        let plan = match &config.firmware {
            Some(image) => started_by_firmware(&config, image)?,
            None => booted_directly(&config, &board, file)?,
        };
        Ok(Self { config, board, plan })
    }

    /// Reads what `config` names and lays out an SEV-SNP guest, which our firmware starts: the one
    /// that is named, or the one that comes with this program.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn snp(config: GuestConfig) -> Result<Self, PrepareError> {
        if config.igvm.is_some() {
            return Err(PrepareError::Unsupported(
                "this version does not launch IGVM files: leave out igvm and give a kernel",
            ));
        }
        let memory = config.memory.0;
        let board =
            Board::new(memory).map_err(|source| PrepareError::Memory { bytes: memory, source })?;
        let named = config.firmware.as_deref().map(read).transpose()?;
        let image = named.as_deref().unwrap_or(casemate_firmware_image::IMAGE);
        let snp = config.snp.clone().unwrap_or_default();
        let policy = SnpPolicy { guest_policy: snp.guest_policy(), vmsa_features: SNP_ACTIVE };
        let plan =
            firmware::snp_guest(image, &payloads(&config)?, policy, identity(&config, &snp)?)
                .map_err(|source| PrepareError::Firmware {
                    file: firmware_name(&config),
                    source,
                })?;
        Ok(Self { config, board, plan })
    }

    /// Reads what `config` names and lays out a TDX guest, which the TDVF starts that is named, or
    /// our firmware: the one that is named, or the one that comes with this program.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn tdx(config: GuestConfig) -> Result<Self, PrepareError> {
        let memory = config.memory.0;
        let board =
            Board::new(memory).map_err(|source| PrepareError::Memory { bytes: memory, source })?;
        let tdx = config.tdx.clone().unwrap_or_default();
        let named = config.firmware.as_deref().map(read).transpose()?;
        let plan = match (named.as_deref(), &config.firmware) {
            (Some(image), Some(file)) if !firmware::is_ours(image) => {
                let ram: Vec<_> = board.ram().collect();
                casemate_launch::tdx::plan(image, &ram, config.vcpus, policy(&config, &tdx))
                    .map_err(|source| PrepareError::Tdvf { file: file.clone(), source })?
            }
            (named, _) => {
                let image = named.unwrap_or(casemate_firmware_image::IMAGE);
                firmware::tdx_guest(image, &payloads(&config)?, policy(&config, &tdx)).map_err(
                    |source| PrepareError::Firmware { file: firmware_name(&config), source },
                )?
            }
        };
        Ok(Self { config, board, plan })
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
    let kernel = Kernel::parse(&read(&file)?)
        .map_err(|source| PrepareError::Kernel { file: file.clone(), source })?;
    let initrd = config.initrd.as_deref().map(read).transpose()?;
    let boot = DirectBoot {
        kernel: &kernel,
        initrd: initrd.as_ref(),
        cmdline: &config.cmdline,
        memory: &board.memory_map(),
        acpi: acpi::tables(ACPI_TABLES.start, config.vcpus),
        reset_code: &reset_code(),
    };
    let memory = config.memory.0;
    boot.plan().map_err(|source| PrepareError::Boot { file, memory, source })
}

fn started_by_firmware(config: &GuestConfig, image: &Path) -> Result<LaunchPlan, PrepareError> {
    firmware::plain_plan(&read(image)?, &payloads(config)?)
        .map_err(|source| PrepareError::Firmware { file: image.into(), source })
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

/// For messages about the firmware.
fn firmware_name(config: &GuestConfig) -> PathBuf {
    config.firmware.clone().unwrap_or_else(|| "of this program".into())
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
