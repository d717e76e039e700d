//! `casemate policy`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use casemate_foreign::Foreign;
use casemate_verify::azure::AzurePolicy;
use casemate_verify::cca::CcaPolicy;
use casemate_verify::google::GooglePolicy;
use casemate_verify::nitro::NitroPolicy;
use casemate_verify::ready::{self, ReadyPolicy};
use casemate_verify::{MAX_INPUT, PolicyError, SnpPolicy, TdxPolicy, Weakness};
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{output, read};

const EXIT_WEAK: u8 = 1;

/// Check policies, and print ready ones
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(CheckArgs),
    /// List ready policies, one per known vulnerability and product
    List,
    /// Print a ready policy, for --policy of casemate verify snp
    ///
    /// It names no guest: add measurements. Its sources go to standard error.
    Show {
        /// Name of the policy (see casemate policy list)
        name: String,
    },
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
    platform: Option<Kind>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Snp,
    Tdx,
    Azure,
    Google,
    Nitro,
    Cca,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Snp => "snp",
            Kind::Tdx => "tdx",
            Kind::Azure => "azure",
            Kind::Google => "google",
            Kind::Nitro => "nitro",
            Kind::Cca => "cca",
        }
    }

    fn weaknesses(self, policy: &[u8]) -> Result<Vec<Weakness>, PolicyError> {
        Ok(match self {
            Kind::Snp => SnpPolicy::from_json(policy)?.weaknesses(),
            Kind::Tdx => TdxPolicy::from_json(policy)?.weaknesses(),
            Kind::Azure => AzurePolicy::from_json(policy)?.weaknesses(),
            Kind::Google => GooglePolicy::from_json(policy)?.weaknesses(),
            Kind::Nitro => NitroPolicy::from_json(policy)?.weaknesses(),
            Kind::Cca => CcaPolicy::from_json(policy)?.weaknesses(),
        })
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check(args) => check(args),
        Command::List => list(),
        Command::Show { name } => show(name),
    }
}

fn list() -> anyhow::Result<ExitCode> {
    let mut out = output();
    for name in ready::names() {
        let title = ready::find(name).map(|policy| policy.title).unwrap_or_default();
        writeln!(out, "{name:18}  {title}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(name: &str) -> anyhow::Result<ExitCode> {
    let policy = ready::find(name);
    let ReadyPolicy { title, sources, policy } = policy.with_context(|| {
        format!("there is no ready policy \"{}\"; casemate policy list names them", Foreign(name))
    })?;
    eprintln!("casemate: {title}; sources: {}", sources.join(", "));
    writeln!(output(), "{policy:#}")?;
    Ok(ExitCode::SUCCESS)
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let text = read("policy", &args.file, MAX_INPUT)?;
    let file = args.file.display();
    let platform = match args.platform {
        Some(platform) => platform,
        None => kind_of(&text).with_context(|| format!("could not check the policy {file}"))?,
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

/// The kind whose policies have these keys.
fn kind_of(text: &[u8]) -> anyhow::Result<Kind> {
    let fitting: Vec<Kind> = Kind::value_variants()
        .iter()
        .copied()
        .filter(|platform| platform.weaknesses(text).is_ok())
        .collect();
    match fitting.as_slice() {
        [one] => Ok(*one),
        [] => bail!("its keys fit no platform; pass --platform for details"),
        several => {
            let names: Vec<_> = several.iter().map(|platform| platform.name()).collect();
            bail!("its keys fit several platforms; pass --platform {}", names.join(" or "))
        }
    }
}
