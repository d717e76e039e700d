//! The configuration of a guest: `guest.toml`, its checks and its reference.
//!
//! [`load`] reads and checks; everything that can be known without the hypervisor is refused here,
//! with an error that names the file, the key, the value and a right one.

#![forbid(unsafe_code)]

mod check;
mod error;
mod file_kind;
mod identity;
mod image_format;
mod keys;
mod overrides;
mod platform;
mod quote_service;
mod reference;
mod schema;
mod size;
mod suggest;
mod td_bits;
mod topology;
mod vcpu_type;

use std::path::Path;

pub use error::{ConfigError, FlagError};
pub use image_format::{ImageFormat, recognize};
pub use keys::Key;
use keys::Value as _;
pub use overrides::{Overrides, flags};
pub use platform::PlatformChoice;
pub use quote_service::QuoteService;
pub use schema::{
    Acceptance, Cpu, Disk, DiskFormat, Ending, GuestConfig, Net, OnError, Serial, Snp, Tdx, Vsock,
    reference,
};
pub use size::{ByteSize, Hex, Mac, SizeError};
pub use suggest::suggestion;
pub use td_bits::{TdAttributes, Xfam};
pub use topology::Topology;
pub use vcpu_type::{VcpuType, VcpuTypeError};

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
    config.start_at(file.parent().unwrap_or(Path::new("")));
    let from_flags = overrides.apply(&mut config)?;
    check::check(&config, &check::Origin { file: Some(file), from_flags })?;
    Ok(config)
}

/// A guest from the command line alone.
///
/// # Errors
/// It describes a guest that cannot be.
pub fn from_flags(overrides: Overrides) -> Result<GuestConfig, ConfigError> {
    let mut config = GuestConfig::default();
    let from_flags = overrides.apply(&mut config)?;
    check::check(&config, &check::Origin { file: None, from_flags })?;
    Ok(config)
}

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
