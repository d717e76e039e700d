//! The configuration of a guest: `guest.toml`, its checks and its reference.
//!
//! [`load`] reads and checks; everything that can be known without the hypervisor is refused here,
//! with an error that names the file, the key, the value and a right one.

#![forbid(unsafe_code)]

mod check;
mod error;
mod flags;
mod identity;
mod image_format;
mod quote_service;
mod reference;
mod schema;
mod size;
mod td_bits;
mod topology;
mod vcpu_type;

use std::path::{Path, PathBuf};

pub use error::ConfigError;
pub use flags::FlagError;
pub use image_format::{ImageFormat, recognize};
pub use quote_service::QuoteService;
pub use schema::{
    Acceptance, Cpu, Disk, DiskFormat, Ending, GuestConfig, Net, OnError, PlatformChoice, Snp, Tdx,
    Vsock, reference,
};
pub use size::{ByteSize, Hex, Mac, SizeError};
pub use td_bits::{TdAttributes, Xfam};
pub use topology::Topology;
pub use vcpu_type::{VcpuType, VcpuTypeError};

/// Values from the command line; each that is there wins over the file's.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of GuestConfig")]
pub struct Overrides {
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub memory: Option<ByteSize>,
    pub vcpus: Option<u32>,
    pub cpu: Option<Cpu>,
    pub platform: Option<PlatformChoice>,
    pub firmware: Option<PathBuf>,
    pub igvm: Option<PathBuf>,
    pub accept_memory: Option<Acceptance>,
    pub firmware_log: Option<bool>,
    /// `snp.vcpu_type`.
    pub vcpu_type: Option<VcpuType>,
    pub rng: Option<bool>,
    pub balloon: Option<bool>,
    pub shared_memory: Option<ByteSize>,
    pub prefault: Option<ByteSize>,
    pub console: Option<bool>,
    pub on_reset: Option<Ending>,
    pub on_panic: Option<Ending>,
    /// All disks, if there are any: the file's do not stay beside them.
    pub disk: Vec<Disk>,
    /// All network interfaces, likewise.
    pub net: Vec<Net>,
    pub vsock: Option<Vsock>,
}

/// Reads `file`, lets `overrides` win, and checks the outcome.
///
/// # Errors
/// The file cannot be read, is not TOML, has keys or values that do not belong, or describes a
/// guest that cannot be.
pub fn load(file: &Path, overrides: Overrides) -> Result<GuestConfig, ConfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
    let mut config: GuestConfig =
        toml::from_str(&text).map_err(|error| ConfigError::from_toml(file, &text, &error))?;
    config.start_paths_at(file.parent().unwrap_or(Path::new("")));
    let from_flags = config.apply(overrides);
    check::check(&config, &check::Origin { file: Some(file), from_flags })?;
    Ok(config)
}

/// A guest from the command line alone.
///
/// # Errors
/// It describes a guest that cannot be.
pub fn from_flags(overrides: Overrides) -> Result<GuestConfig, ConfigError> {
    let mut config = GuestConfig::default();
    let from_flags = config.apply(overrides);
    check::check(&config, &check::Origin { file: None, from_flags })?;
    Ok(config)
}

impl GuestConfig {
    /// Takes what `overrides` has and returns the names of the keys it took.
    fn apply(&mut self, overrides: Overrides) -> Vec<&'static str> {
        let mut taken = Vec::new();
        macro_rules! take {
            ($($key:ident: $wrap:expr),*) => {$(
                if let Some(value) = overrides.$key {
                    self.$key = $wrap(value);
                    taken.push(stringify!($key));
                }
            )*};
        }
        take!(kernel: Some, initrd: Some, firmware: Some, igvm: Some, vsock: Some);
        take!(cpu: Some);
        take!(shared_memory: Some);
        take!(cmdline: From::from, memory: From::from, vcpus: From::from, platform: From::from);
        take!(accept_memory: From::from, firmware_log: From::from, rng: From::from, balloon: From::from);
        take!(prefault: From::from, console: From::from);
        take!(on_reset: From::from, on_panic: From::from);
        if let Some(model) = overrides.vcpu_type {
            self.snp.get_or_insert_default().vcpu_type = Some(model);
            taken.push("vcpu_type");
        }
        if !overrides.disk.is_empty() {
            self.disk = overrides.disk;
            taken.push("disk");
        }
        if !overrides.net.is_empty() {
            self.net = overrides.net;
            taken.push("net");
        }
        taken
    }

    /// Relative paths of a file start at the file's folder.
    fn start_paths_at(&mut self, folder: &Path) {
        let optional = [&mut self.kernel, &mut self.initrd, &mut self.firmware, &mut self.igvm];
        let snp = self.snp.iter_mut();
        let snp = snp
            .flat_map(|snp| [&mut snp.id_block, &mut snp.id_authentication, &mut snp.certificates]);
        let required = self.disk.iter_mut().map(|disk| &mut disk.path);
        let required = required.chain(self.vsock.iter_mut().map(|vsock| &mut vsock.socket));
        for path in optional.into_iter().chain(snp).flatten().chain(required) {
            // An empty path is a missing one, and must stay that.
            if !path.as_os_str().is_empty() {
                *path = folder.join(&*path);
            }
        }
    }
}

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
