//! `casemate measure GUEST.toml`

use std::path::Path;

use anyhow::{Context as _, bail};
use casemate_config::{GuestConfig, Overrides};
use casemate_launch::{Digest384, PlatformKind};
use casemate_plan::{Rules, platforms};

use super::output::Measured;
use super::snp::Cpu;
use super::snp_guest::SnpGuest;
use super::tdx_guest::TdxGuest;
use crate::commands::cautions::measured_line;
use crate::commands::words;

/// What a configuration leaves open.
#[derive(clap::Args)]
pub(super) struct Open {
    /// Measure this platform only
    #[arg(long, value_name = "NAME", value_parser = words::<PlatformKind>(MEASURING))]
    pub(super) platform: Option<PlatformKind>,
    #[command(flatten)]
    pub(super) cpu: Cpu,
}

/// The platforms that measure a guest.
const MEASURING: &[&str] = &["snp", "tdx"];

/// The guest of a file, on every platform that it allows.
pub(super) fn measured(
    file: &Path,
    open: &Open,
) -> anyhow::Result<Vec<(PlatformKind, anyhow::Result<Measured>)>> {
    let config = load(file, &open.cpu)?;
    let mut allowed = platforms(&config).to_vec();
    if allowed == [PlatformKind::Plain] {
        bail!(
            "{} is for plain KVM, which measures nothing: choose platform = \"snp\", \"tdx\" or \
             \"auto\"",
            file.display()
        );
    }
    if let Some(target) = open.platform {
        allowed.retain(|platform| *platform == target);
    }
    if allowed.is_empty() {
        bail!("{} does not allow this platform", file.display());
    }
    Ok(allowed.into_iter().map(|platform| (platform, measure(&config, platform))).collect())
}

/// The configuration that `casemate run` would have with the same flags.
fn load(file: &Path, cpu: &Cpu) -> anyhow::Result<GuestConfig> {
    let model = cpu.signature().map(|signature| signature.to_string());
    let flags = model.iter().map(|model| ("vcpu_type", model.as_str()));
    Ok(casemate_config::load(file, Overrides::new(flags)?)?)
}

fn measure(config: &GuestConfig, platform: PlatformKind) -> anyhow::Result<Measured> {
    let (guest, rules) = (config.clone(), Rules::default());
    let measured = match platform {
        PlatformKind::Snp => {
            let guest = SnpGuest { config: guest, rules };
            guest.measured()?.beside("host_data", &config.host_data())
        }
        _ => TdxGuest::of(guest).measured()?.beside("mrconfigid", &config.mrconfigid()),
    };
    Ok(match measured_line(config) {
        Some(line) => measured.with_line(line, config.vsock.is_some()),
        None => measured,
    })
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
pub(crate) fn expected(file: &Path, platform: PlatformKind) -> anyhow::Result<Expected> {
    let open = Open { platform: Some(platform), cpu: Cpu::default() };
    let failed = || format!("could not compute what {} measures to", file.display());
    let mut results = measured(file, &open).with_context(failed)?;
    let (_, result) = results.pop().with_context(failed)?;
    let measurement = result.with_context(failed)?.measurement;
    let config = load(file, &open.cpu)?;
    let (host_data, mrconfigid) = (config.host_data(), config.mrconfigid());
    Ok(Expected { measurement, host_data, mrconfigid })
}
