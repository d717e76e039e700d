//! `casemate measure --diff`

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use casemate_config::{ByteSize, GuestConfig, Snp};
use casemate_launch::diff::differences;
use casemate_launch::manifest::Manifest;
use casemate_launch::profile::Profile;
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::tdx::{self, PageOrder};
use casemate_launch::{PlatformKind, igvm::ZeroPages};
use casemate_plan::{Rules, plan};
use serde_json::json;

use super::guest::{self, Open};
use super::output::Format;
use crate::commands::{MAX_FIRMWARE, igvm, output, read};

const EXIT_DIFFERENT: u8 = 1;

/// Says what differs between two manifests, guests or files. Exit status 0: nothing, 1: something.
pub(super) fn run(files: &[PathBuf], open: &Open, format: Format) -> anyhow::Result<ExitCode> {
    let [first, second] = files else { bail!("--diff compares two files") };
    let (a, b) = (manifest(first, open)?, manifest(second, open)?);
    let found = differences(&a, &b);
    let mut out = output();
    match format {
        Format::Hex => bail!("--format hex is for one measurement"),
        Format::Json => {
            let measurements = [a.measurement, b.measurement];
            let result = json!({ "measurements": measurements, "differences": found });
            writeln!(out, "{}", serde_json::to_string_pretty(&result)?)?;
        }
        Format::Table if found.is_empty() => {
            writeln!(out, "no difference: both measure to {}", a.measurement)?;
        }
        Format::Table => {
            for difference in &found {
                writeln!(out, "{difference}")?;
            }
        }
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERENT) })
}

fn manifest(path: &Path, open: &Open) -> anyhow::Result<Manifest> {
    if path.extension().is_some_and(|extension| extension == "toml") {
        return of_guest(path, open);
    }
    let mut start = [0; 4];
    let read = File::open(path)
        .and_then(|file| file.take(4).read(&mut start))
        .with_context(|| format!("could not read {}", path.display()))?;
    match &start[..read] {
        b"IGVM" => of_igvm(path, open),
        [b'{', ..] => of_json(path),
        _ => of_firmware(path, open),
    }
}

fn of_json(path: &Path) -> anyhow::Result<Manifest> {
    let text = read("manifest", path, MAX_FIRMWARE)?;
    serde_json::from_slice(&text).with_context(|| {
        format!("{} is no manifest, as `casemate measure --manifest` writes it", path.display())
    })
}

/// The first platform of the guest that can be measured.
fn of_guest(path: &Path, open: &Open) -> anyhow::Result<Manifest> {
    let mut refused = None;
    for (_, result) in guest::measured(path, open)? {
        match result {
            Ok(measured) => return (measured.manifest)(),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    let why = refused.context("no platform is allowed")?;
    Err(why).with_context(|| format!("{} cannot be measured", path.display()))
}

fn of_igvm(path: &Path, open: &Open) -> anyhow::Result<Manifest> {
    let mut file = igvm::open(path)?;
    let target = open.platform.unwrap_or(PlatformKind::Snp);
    let failed = || format!("{} cannot be measured", path.display());
    let platform = file.platform(target, None).with_context(failed)?;
    casemate_launch::measure::igvm::manifest(&mut file, platform, ZeroPages::Normal)
        .with_context(failed)
}

/// A firmware image as such: one vCPU of no CPU model in particular, no kernel.
fn of_firmware(path: &Path, open: &Open) -> anyhow::Result<Manifest> {
    let failed = || format!("{} cannot be measured", path.display());
    let model = open.cpu.model().unwrap_or(CpuSignature(0).into());
    let config = GuestConfig {
        firmware: Some(path.to_owned()),
        memory: ByteSize(2 << 30),
        snp: Some(Snp { vcpu_type: Some(model), ..Snp::default() }),
        ..GuestConfig::default()
    };
    let platform = open.platform.unwrap_or(PlatformKind::Snp);
    let rules = Rules { launcher: Some(Profile::Qemu), ..Rules::default() };
    let plan = plan(&config, platform, &rules).with_context(failed)?.launch;
    match platform {
        PlatformKind::Tdx => tdx::manifest(&plan, PageOrder::PerPage).with_context(failed),
        PlatformKind::Snp | PlatformKind::Plain => snp::manifest(&plan).with_context(failed),
    }
}
