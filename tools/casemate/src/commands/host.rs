//! `casemate host`

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use casemate_config::QuoteService;
use casemate_kvm::host::{Facts, Finding, State, can_launch, findings};
use casemate_kvm::vm::PLATFORMS;
use casemate_launch::PlatformKind;
use casemate_machine::quote_service::{self, QuoteError};
use serde_json::json;

use super::words;

/// Check which guests this host supports
///
/// Prints one line per check, with a remedy where a check fails: CPU, BIOS, kernel, modules, firmware,
/// cgroups, devices and limits, for AMD SEV-SNP, Intel TDX and plain KVM. `casemate run` makes the same
/// checks before each launch. The command changes nothing.
///
/// Exit status: 0 the host supports at least one platform (or the one of --platform), 1 it does not. With
/// --quote-selftest: 0 the service answers, 1 it does not.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  casemate host
  casemate host --platform snp && casemate run --platform snp guest.toml
  casemate host --json | jq .launchable
  casemate host --quote-selftest vsock:2:4050")]
pub(crate) struct Args {
    /// Check this platform only
    #[arg(long, value_name = "NAME", value_parser = words::<PlatformKind>(PlatformKind::WORDS))]
    platform: Option<PlatformKind>,
    /// Request a quote from a TDX quote service, and report each step
    ///
    /// SERVICE is unix:/PATH or vsock:CID:PORT [default: unix:/var/run/tdx-qgs/qgs.socket]
    #[arg(long, value_name = "SERVICE", num_args = 0..=1, default_missing_value = "")]
    quote_selftest: Option<String>,
    /// Print facts and findings as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(service) = &args.quote_selftest {
        let service = match service.as_str() {
            "" => QuoteService::default(),
            text => text.parse()?,
        };
        return quote_selftest(&service, args.json);
    }
    let facts = Facts::gather(Path::new("/"));
    let asked: Vec<PlatformKind> = match args.platform {
        Some(platform) => vec![platform],
        None => PLATFORMS.to_vec(),
    };
    let mut findings = findings(&facts);
    findings.retain(|finding| finding.platforms.iter().any(|platform| asked.contains(platform)));
    let launchable: Vec<PlatformKind> =
        asked.iter().copied().filter(|&platform| can_launch(&findings, platform)).collect();
    let mut out = super::output();
    if args.json {
        let report = json!({ "launchable": launchable, "findings": findings, "facts": facts });
        let text = serde_json::to_string_pretty(&report).context("could not write JSON")?;
        writeln!(out, "{text}")?;
    } else {
        write!(out, "{}", table(&findings))?;
        writeln!(out, "{}", verdict(&asked, &launchable))?;
    }
    Ok(if launchable.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Tries the way from here to a quote, with a report of zeroes, which no TDX module made: that the
/// service refuses it is as good an answer as a quote.
fn quote_selftest(service: &QuoteService, json: bool) -> anyhow::Result<ExitCode> {
    const REPORT: [u8; 1024] = [0; 1024];
    let outcome = quote_service::quote(service, &REPORT);
    let works = matches!(outcome, Ok(_) | Err(QuoteError::Refused { .. }));
    let says = match &outcome {
        Ok(quote) => format!("the quote service {service} gives quotes: {} bytes", quote.len()),
        Err(error @ QuoteError::Refused { .. }) => {
            format!("{error}, which is right: the report was made up")
        }
        Err(error) => {
            let cause = std::error::Error::source(error);
            let cause = cause.map_or(String::new(), |cause| format!(": {cause}"));
            format!("{error}{cause}")
        }
    };
    let mut out = super::output();
    if json {
        writeln!(
            out,
            "{}",
            json!({ "service": service.to_string(), "works": works, "says": says })
        )?;
    } else {
        writeln!(out, "{}  {says}", if works { "ok" } else { "MISSING" })?;
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let line = |Finding { check, state, says, fix, .. }: &Finding| {
        let state = match state {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "MISSING",
        };
        let fix = fix.as_ref().map_or(String::new(), |fix| format!(" -> {fix}"));
        format!("{state:<7}  {check:<width$}  {says}{fix}\n")
    };
    findings.iter().map(line).collect()
}

fn verdict(asked: &[PlatformKind], launchable: &[PlatformKind]) -> String {
    let names = |platforms: &mut dyn Iterator<Item = &PlatformKind>| {
        platforms.map(|platform| platform.name()).collect::<Vec<_>>().join(", ")
    };
    let can = names(&mut launchable.iter());
    let cannot = names(&mut asked.iter().filter(|platform| !launchable.contains(platform)));
    match (can.is_empty(), cannot.is_empty()) {
        (false, true) => format!("This machine can launch: {can}."),
        (false, false) => format!("This machine can launch: {can}. Not: {cannot}."),
        (true, _) => format!("This machine cannot launch: {cannot}."),
    }
}
