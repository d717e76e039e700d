//! `casemate policy`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use casemate_verify::{MAX_INPUT, PolicyError, SnpPolicy, TdxPolicy, Weakness};
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{output, read};

const EXIT_WEAK: u8 = 1;

/// Check policies
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(CheckArgs),
}

/// List conditions that a policy leaves open
///
/// A secret's policy should name the guest, forbid debugging and migration, and set the privilege level
/// and the minimum TCB (SEV-SNP) or the TCB statuses (TDX). casemate broker accepts a policy with an open
/// condition only with --accept-weak-policy.
///
/// Exit status: 0 no condition is open, 1 a condition is open, 2 invalid input or usage.
#[derive(clap::Args)]
struct CheckArgs {
    /// Policy, as JSON
    file: PathBuf,
    /// Platform of the policy [default: derived from its keys]
    #[arg(long, value_enum)]
    platform: Option<Platform>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Platform {
    Snp,
    Tdx,
}

impl Platform {
    fn name(self) -> &'static str {
        match self {
            Platform::Snp => "snp",
            Platform::Tdx => "tdx",
        }
    }

    fn weaknesses(self, policy: &[u8]) -> Result<Vec<Weakness>, PolicyError> {
        Ok(match self {
            Platform::Snp => SnpPolicy::from_json(policy)?.weaknesses(),
            Platform::Tdx => TdxPolicy::from_json(policy)?.weaknesses(),
        })
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = &args.command;
    let text = read("policy", &args.file, MAX_INPUT)?;
    let file = args.file.display();
    let platform = match args.platform {
        Some(platform) => platform,
        None => platform_of(&text).with_context(|| format!("could not check the policy {file}"))?,
    };
    let open =
        platform.weaknesses(&text).with_context(|| format!("could not check the policy {file}"))?;
    let mut out = output();
    if args.json {
        writeln!(out, "{:#}", json!({"platform": platform.name(), "open": open}))?;
    } else if open.is_empty() {
        writeln!(out, "{file}: nothing is open")?;
    } else {
        for weakness in &open {
            writeln!(out, "{file}: {weakness}")?;
        }
    }
    Ok(if open.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_WEAK) })
}

/// The platform whose policies have these keys.
fn platform_of(text: &[u8]) -> anyhow::Result<Platform> {
    match (Platform::Snp.weaknesses(text), Platform::Tdx.weaknesses(text)) {
        (Ok(_), Err(_)) => Ok(Platform::Snp),
        (Err(_), Ok(_)) => Ok(Platform::Tdx),
        (Ok(_), Ok(_)) => {
            bail!("its keys fit SEV-SNP and TDX; pass --platform snp or --platform tdx")
        }
        (Err(snp), Err(_)) => Err(anyhow::Error::from(snp)
            .context("it is for neither platform; pass --platform for details")),
    }
}
