//! `casemate verify`

use std::path::PathBuf;
use std::process::ExitCode;

use casemate_launch::PlatformKind;
use casemate_protocol::{Challenger, Nonce, challenge_data};
use casemate_verify::{Hex, OneOrMany, Timestamp};
use clap::{Subcommand, ValueEnum};

use super::measure::guest::{self, Expected};
use super::{read, read_optional};

mod azure;
mod cca;
mod google;
mod nitro;
mod output;
mod snp;
mod tdx;

/// Judge evidence: an SEV-SNP report, a TDX quote, or evidence of a cloud
///
/// Works offline, on files. Every check is listed by name with what it found. "accept" means that
/// every check of this kind of evidence, and every one that the policy asks for, was done and passed.
///
/// Exit status: 0 accept, 1 reject, 2 bad input or usage, 3 a genuine quote without collateral.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    Snp(snp::Args),
    Tdx(tdx::Args),
    Azure(azure::Args),
    Google(google::Args),
    Nitro(nitro::Args),
    Cca(cca::Args),
}

/// Options of all kinds.
#[derive(clap::Args)]
struct Common {
    /// Conditions on the evidence, as JSON
    ///
    /// The default forbids debugging. For SEV-SNP it also forbids a migration agent and requires VMPL 0;
    /// for TDX it requires the TCB status UpToDate.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Time for which to judge, RFC 3339 [default: now]
    ///
    /// An example is 2026-11-24T12:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    at: Option<Timestamp>,
    /// Format of the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Explain each check in a sentence
    ///
    /// With --format json, the sentences go to standard error.
    #[arg(long)]
    explain: bool,
}

impl Common {
    fn at(&self) -> Timestamp {
        self.at.unwrap_or_else(Timestamp::now)
    }
}

/// Conditions on guests that run `casemate-agent`.
#[derive(clap::Args)]
struct Guest {
    /// Require the guest of this configuration, launched by casemate run
    ///
    /// Computes its measurement and its HOST_DATA (SEV-SNP) or MRCONFIGID (TDX), as casemate measure GUEST.toml
    /// does, and adds them to the policy's conditions.
    #[arg(long, value_name = "GUEST.toml")]
    expect: Option<PathBuf>,
    /// Require the nonce that `casemate-agent report --nonce` was given
    ///
    /// Adds to the policy's conditions that REPORT_DATA is the agent's hash of it.
    #[arg(long, value_name = "HEX")]
    nonce: Option<Nonce>,
}

impl Guest {
    /// What `--expect` computes.
    fn expected(&self, platform: PlatformKind) -> anyhow::Result<Option<Expected>> {
        self.expect.as_ref().map(|file| guest::expected(file, platform)).transpose()
    }

    /// Adds what `--nonce` requires of REPORT_DATA.
    fn require_nonce(&self, report_data: &mut Option<OneOrMany<Hex<64>>>) {
        if let Some(nonce) = &self.nonce {
            require(report_data, challenge_data(Challenger::Report, nonce.as_ref()));
        }
    }
}

/// Adds a value to a policy's list. A list that does not have it allows nothing any more: both
/// conditions hold.
fn require<const N: usize>(list: &mut Option<OneOrMany<Hex<N>>>, value: [u8; N]) {
    match list {
        Some(OneOrMany(allowed)) => allowed.retain(|one| one.0 == value),
        None => *list = Some(OneOrMany(vec![Hex(value)])),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.kind {
        Kind::Snp(args) => snp::run(args),
        Kind::Tdx(args) => tdx::run(args),
        Kind::Azure(args) => azure::run(args),
        Kind::Google(args) => google::run(args),
        Kind::Nitro(args) => nitro::run(args),
        Kind::Cca(args) => cca::run(args),
    }
}
