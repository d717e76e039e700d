//! `casemate explain`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use casemate_config::{GuestConfig, Overrides, PlatformChoice};
use casemate_launch::sev_metadata::{SectionType, SevMetadata, SevSection};
use casemate_launch::{PlatformKind, firmware};
use clap::ValueEnum;

mod facts;
mod host;

use super::{MAX_FIRMWARE, read};
use facts::{Boot, Facts};

/// Say what protects a guest, and from whom
///
/// What of the guest is measured; what its host can see, change, delay or withhold; who holds which
/// key; which logs and metadata stay visible; and which support actions its policy makes possible.
/// Says it for every platform that the guest's configuration allows. Nothing is launched.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    /// The guest's configuration
    #[arg(value_name = "GUEST.toml")]
    guest: PathBuf,
    /// Only this platform of the guest
    #[arg(long, value_enum)]
    platform: Option<Target>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Plain,
    Snp,
    Tdx,
}

impl From<Target> for PlatformKind {
    fn from(target: Target) -> Self {
        match target {
            Target::Plain => Self::Plain,
            Target::Snp => Self::Snp,
            Target::Tdx => Self::Tdx,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = casemate_config::load(&args.guest, Overrides::default())?;
    let boot = boot(&config)?;
    let mut platforms = match config.platform {
        PlatformChoice::Auto => vec![PlatformKind::Snp, PlatformKind::Tdx],
        PlatformChoice::Snp => vec![PlatformKind::Snp],
        PlatformChoice::Tdx => vec![PlatformKind::Tdx],
        PlatformChoice::Plain => vec![PlatformKind::Plain],
    };
    if let Some(target) = args.platform {
        platforms.retain(|platform| *platform == target.into());
    }
    ensure!(!platforms.is_empty(), "{} does not allow this platform", args.guest.display());
    let facts: Vec<_> =
        platforms.into_iter().map(|platform| Facts::new(platform, boot, &config)).collect();
    let mut out = super::output();
    match args.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&facts)?)?,
        Format::Text => {
            let texts: Vec<_> = facts.iter().map(ToString::to_string).collect();
            write!(out, "{}", texts.join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(config: &GuestConfig) -> anyhow::Result<Boot> {
    let path = match (&config.igvm, &config.firmware) {
        (Some(_), _) => return Ok(Boot::Igvm),
        (None, None) => return Ok(Boot::Casemate),
        (None, Some(path)) => path,
    };
    let image = read("firmware", path, MAX_FIRMWARE)?;
    if firmware::is_ours(&image) {
        return Ok(Boot::Casemate);
    }
    let is_hashes = |section: &SevSection| section.section_type == SectionType::KernelHashes;
    let kernel_hashes = SevMetadata::parse(&image)
        .is_ok_and(|sev| sev.hash_table.is_some() && sev.sections.iter().any(is_hashes));
    Ok(Boot::Ovmf { kernel_hashes })
}
