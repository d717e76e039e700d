//! The files that a configuration names.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use casemate_config::GuestConfig;
use casemate_launch::Bytes;
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::linux::BzImage;
use casemate_launch::loader_window::Payloads;

use crate::{PlanError, Rules};

/// Limit for a firmware image in bytes: several times the size of the largest ones.
pub const MAX_FIRMWARE: u64 = 256 << 20;
/// Limit for a kernel or an initial RAM disk in bytes.
pub const MAX_PAYLOAD: u64 = 4 << 30;

/// A kernel for OVMF, and what it is started with.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// A bzImage.
    pub kernel: Bytes,
    /// The initial RAM disk; empty if there is none.
    pub initrd: Bytes,
    /// The command line, without its NUL.
    pub cmdline: String,
}

impl BootFiles {
    /// The hashes that OVMF checks them against.
    #[must_use]
    pub fn hashes(&self) -> KernelHashes {
        KernelHashes::new(&self.kernel, &self.initrd, self.cmdline.as_bytes())
    }
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, or is longer.
pub fn read(what: &'static str, file: &Path, limit: u64) -> Result<Vec<u8>, PlanError> {
    let failed = |source| PlanError::File { what, file: file.into(), source };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(failed)?;
    opened.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        let text = format!("it has more than {limit} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)));
    }
    Ok(bytes)
}

/// Reads a file of exactly `N` bytes.
pub(crate) fn exactly<const N: usize>(
    what: &'static str,
    file: &Path,
) -> Result<Box<[u8; N]>, PlanError> {
    let bytes = read(what, file, MAX_FIRMWARE)?.into_boxed_slice();
    bytes.try_into().map_err(|bytes: Box<[u8]>| {
        let text = format!("it has {} bytes instead of {N}", bytes.len());
        let source = io::Error::new(io::ErrorKind::InvalidData, text);
        PlanError::File { what, file: file.into(), source }
    })
}

pub(crate) fn kernel(file: &Path) -> Result<Bytes, PlanError> {
    Ok(read("kernel", file, MAX_PAYLOAD)?.into())
}

/// The initial RAM disk; empty if there is none.
pub(crate) fn initrd(config: &GuestConfig) -> Result<Bytes, PlanError> {
    let Some(file) = &config.initrd else { return Ok(Bytes::default()) };
    Ok(read("initial RAM disk", file, MAX_PAYLOAD)?.into())
}

/// The contents of the loader window of Casemate's firmware.
pub(crate) fn payloads(config: &GuestConfig) -> Result<Payloads, PlanError> {
    let file = config.kernel.as_deref().ok_or(PlanError::NoKernel)?;
    Ok(Payloads {
        kernel: kernel(file)?,
        initrd: initrd(config)?,
        cmdline: config.cmdline.as_bytes().into(),
        memory: config.memory.0,
        vcpus: config.vcpus,
    })
}

/// The kernel that OVMF starts, if there is one.
pub(crate) fn boot_files(
    config: &GuestConfig,
    rules: &Rules,
) -> Result<Option<BootFiles>, PlanError> {
    let Some(file) = &config.kernel else { return Ok(None) };
    let kernel = kernel(file)?;
    // Other launchers pass on whatever they are given.
    if rules.are_ours() {
        BzImage::parse(&kernel).map_err(|source| PlanError::Kernel {
            file: PathBuf::clone(file),
            wanted: "a bzImage, as OVMF starts it",
            source: source.into(),
        })?;
    }
    Ok(Some(BootFiles { kernel, initrd: initrd(config)?, cmdline: config.cmdline.clone() }))
}
