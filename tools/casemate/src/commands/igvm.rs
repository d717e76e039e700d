//! `casemate igvm`

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use casemate_launch::PlatformKind;
use casemate_launch::igvm::{IgvmFile, Item, Platform, ZeroPages, inspect};
use casemate_launch::measure::igvm::{measure_snp, measure_tdx};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

mod build;

use super::measure::Digests;

/// Build, inspect and measure IGVM files
///
/// An IGVM file contains, for each platform that it supports, the initial memory of a guest and the
/// initial registers of its vCPU.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Build(build::Args),
    Inspect(InspectArgs),
    Measure(MeasureArgs),
}

/// List the contents of an IGVM file for each platform
#[derive(clap::Args)]
struct InspectArgs {
    /// IGVM file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Predict the measurement of an IGVM file on each platform
///
/// Prints two digests for SEV-SNP: in the order of the file, and in KVM's order, which measures the
/// VMSA last. `casemate measure snp --igvm` and `casemate measure tdx --igvm` print more details of one
/// platform.
#[derive(clap::Args)]
struct MeasureArgs {
    /// IGVM file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Table,
}

/// What an IGVM file is read from, piece by piece.
pub(crate) type Source = File;

/// Opens an IGVM file and checks its frame.
pub(crate) fn open(path: &Path) -> anyhow::Result<IgvmFile<Source>> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    IgvmFile::open(file).with_context(|| format!("could not read {}", path.display()))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Build(args) => build::run(args),
        Action::Inspect(args) => run_inspect(args),
        Action::Measure(args) => run_measure(args),
    }
}

/// One platform of a file, and what there is to say about it.
#[derive(Serialize)]
struct Of<T> {
    /// Null if KVM does not have it.
    platform: Option<PlatformKind>,
    compatibility_mask: String,
    #[serde(flatten)]
    what: T,
}

impl<T> Of<T> {
    fn new(platform: Platform, what: T) -> Self {
        let compatibility_mask = format!("{:#x}", platform.mask);
        Self { platform: platform.kind, compatibility_mask, what }
    }

    fn headline(&self) -> String {
        let name = self.platform.map_or("unknown", PlatformKind::word);
        format!("{name} (compatibility mask {})", self.compatibility_mask)
    }
}

#[derive(Serialize)]
struct Items {
    items: Vec<Item>,
}

fn run_inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let mut file = open(&args.file)?;
    let mut platforms = Vec::new();
    for platform in file.platforms().to_vec() {
        let items = inspect(&mut file, platform)
            .with_context(|| format!("could not read {}", args.file.display()))?;
        platforms.push(Of::new(platform, Items { items }));
    }
    let mut out = super::output();
    if args.format == Format::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&platforms)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for platform in &platforms {
        writeln!(out, "{}", platform.headline())?;
        for item in &platform.what.items {
            let address = item.address.map_or(String::new(), |gpa| gpa.to_string());
            let length = item.length.map_or(String::new(), |bytes| format!("{bytes:#x}"));
            let detail = item.detail.as_deref().unwrap_or_default();
            let line = format!("  {address:>14} {length:>10}  {:24} {detail}", item.what);
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A platform's measurement; null for a platform that measures nothing, and for a file that KVM cannot
/// launch.
#[derive(Serialize)]
struct Measured {
    measurement: Option<casemate_launch::Digest384>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digests: Option<Digests>,
}

fn run_measure(args: &MeasureArgs) -> anyhow::Result<ExitCode> {
    let mut file = open(&args.file)?;
    let mut platforms = Vec::new();
    for platform in file.platforms().to_vec() {
        let measured = measure(&mut file, platform)
            .with_context(|| format!("could not measure {}", args.file.display()))?;
        platforms.push(Of::new(platform, measured));
    }
    let refused = |of: &Of<Measured>| of.what.digests.as_ref().is_some_and(Digests::are_refused);
    let refused = platforms.iter().any(refused);
    let status = ExitCode::from(if refused { super::EXIT_BAD_INPUT } else { 0 });
    let mut out = super::output();
    if args.format == Format::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&platforms)?)?;
        return Ok(status);
    }
    for platform in &platforms {
        writeln!(out, "{}", platform.headline())?;
        let Measured { measurement, digests } = &platform.what;
        let own = measurement.map_or("none".to_owned(), |digest| digest.to_string());
        writeln!(out, "  {:16}  {own}", "measurement")?;
        for (name, value) in digests.iter().flat_map(Digests::rows) {
            writeln!(out, "  {name:16}  {value}")?;
        }
    }
    Ok(status)
}

fn measure(file: &mut IgvmFile<Source>, platform: Platform) -> anyhow::Result<Measured> {
    Ok(match platform.kind {
        Some(PlatformKind::Snp) => {
            let found = measure_snp(file, Some(platform.mask), ZeroPages::Normal)?;
            Measured { measurement: found.kvm.clone().ok(), digests: Some(Digests::from(&found)) }
        }
        Some(PlatformKind::Tdx) => {
            Measured { measurement: Some(measure_tdx(file, Some(platform.mask))?), digests: None }
        }
        Some(PlatformKind::Plain) | None => Measured { measurement: None, digests: None },
    })
}
