//! `casemate explain`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use casemate_config::Overrides;
use casemate_launch::PlatformKind;
use casemate_plan::{Rules, plan, platforms};
use clap::ValueEnum;

mod facts;
mod host;

use super::words;
use facts::Facts;

/// Describe what protects a guest, and from whom
///
/// Lists, for each platform that the configuration allows: measured inputs; what the host can see, change,
/// delay or withhold; holders of keys; visible logs and metadata; and support actions that the policy
/// permits. Reads the launch plan of `casemate run`, and does not launch the guest.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    /// Configuration of the guest
    #[arg(value_name = "GUEST.toml")]
    guest: PathBuf,
    /// Describe this platform only
    #[arg(long, value_name = "NAME", value_parser = words::<PlatformKind>(PlatformKind::WORDS))]
    platform: Option<PlatformKind>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = casemate_config::load(&args.guest, Overrides::default())?;
    let mut platforms = platforms(&config).to_vec();
    if let Some(target) = args.platform {
        platforms.retain(|platform| *platform == target);
    }
    ensure!(!platforms.is_empty(), "{} does not allow this platform", args.guest.display());
    let mut facts = Vec::new();
    for platform in platforms {
        let plan = plan(&config, platform, &Rules::default());
        facts.push(Facts::new(platform, plan.map_err(anyhow::Error::from), &config));
    }
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
