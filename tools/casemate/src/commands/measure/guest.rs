//! `casemate measure GUEST.toml`

use std::path::Path;

use anyhow::{Context as _, bail};
use casemate_config::{GuestConfig, Overrides, PlatformChoice};
use casemate_launch::profile::Profile;
use casemate_launch::{Digest384, PlatformKind, firmware};
use clap::ValueEnum;

use super::igvm_snp::{self, IgvmArgs};
use super::output::Measured;
use super::snp::Cpu;
use super::snp_guest::SnpGuest;
use super::tdx;
use crate::commands::cautions::measured_line;
use crate::commands::{MAX_FIRMWARE, OwnFirmware, read};

/// What a configuration leaves open.
#[derive(clap::Args)]
pub(super) struct Open {
    /// Only this platform of the guest
    #[arg(long, value_enum)]
    pub(super) platform: Option<Target>,
    #[command(flatten)]
    pub(super) cpu: Cpu,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    Snp,
    Tdx,
}

impl From<Target> for PlatformKind {
    fn from(target: Target) -> Self {
        match target {
            Target::Snp => Self::Snp,
            Target::Tdx => Self::Tdx,
        }
    }
}

/// The guest of a file, on every platform that it allows.
pub(super) fn measured(
    file: &Path,
    open: &Open,
) -> anyhow::Result<Vec<(PlatformKind, anyhow::Result<Measured>)>> {
    let config = casemate_config::load(file, Overrides::default())?;
    let mut allowed = match config.platform {
        PlatformChoice::Auto => vec![PlatformKind::Snp, PlatformKind::Tdx],
        PlatformChoice::Snp => vec![PlatformKind::Snp],
        PlatformChoice::Tdx => vec![PlatformKind::Tdx],
        PlatformChoice::Plain => bail!(
            "{} is for plain KVM, which measures nothing: choose platform = \"snp\", \"tdx\" or \
             \"auto\"",
            file.display()
        ),
    };
    if let Some(target) = open.platform {
        allowed.retain(|platform| *platform == target.into());
    }
    if allowed.is_empty() {
        bail!("{} does not allow this platform", file.display());
    }
    let measure = |platform| {
        let measured = match platform {
            PlatformKind::Snp => {
                measured_snp(&config, open)?.beside("host_data", &config.host_data())
            }
            _ => {
                let args = tdx::Args::of(&config);
                tdx::measured(&args)?.beside("mrconfigid", &config.mrconfigid())
            }
        };
        Ok(match measured_line(&config) {
            Some(line) => measured.with_line(line, config.vsock.is_some()),
            None => measured,
        })
    };
    Ok(allowed.into_iter().map(|platform| (platform, measure(platform))).collect())
}

/// What evidence of a file's guest must have.
pub(crate) struct Expected {
    pub(crate) measurement: Digest384,
    /// Of SEV-SNP reports.
    pub(crate) host_data: [u8; 32],
    /// Of TDX quotes.
    pub(crate) mrconfigid: [u8; 48],
}

/// What to expect of a file's guest on one platform.
pub(crate) fn expected(file: &Path, platform: Target) -> anyhow::Result<Expected> {
    let open = Open { platform: Some(platform), cpu: Cpu::default() };
    let failed = || format!("could not compute what {} measures to", file.display());
    let mut results = measured(file, &open).with_context(failed)?;
    let (_, result) = results.pop().with_context(failed)?;
    let measurement = result.with_context(failed)?.measurement;
    let config = casemate_config::load(file, Overrides::default())?;
    let (host_data, mrconfigid) = (config.host_data(), config.mrconfigid());
    Ok(Expected { measurement, host_data, mrconfigid })
}

fn measured_snp(config: &GuestConfig, open: &Open) -> anyhow::Result<Measured> {
    if let Some(path) = &config.igvm {
        return igvm_snp::measured(&IgvmArgs::default(), path);
    }
    let ours = match &config.firmware {
        Some(path) => firmware::is_ours(&read("firmware", path, MAX_FIRMWARE)?),
        None => true,
    };
    let guest = SnpGuest {
        firmware: config.firmware.clone(),
        vcpus: config.vcpus,
        signature: open.cpu.signature(),
        features: SNP_ACTIVE,
        profile: if ours { Profile::Casemate } else { Profile::Qemu },
        kernel: config.kernel.clone(),
        initrd: config.initrd.clone(),
        append: Some(config.cmdline.clone().into()),
        own: OwnFirmware::of(config),
    };
    guest.measured()
}

/// The SEV_FEATURES that a guest of ours has.
const SNP_ACTIVE: u64 = 1;
