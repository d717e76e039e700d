//! `casemate measure`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;

mod diff;
pub(crate) mod guest;
mod igvm_snp;
mod output;
mod search;
mod search_igvm;
mod snp;
mod snp_guest;
mod tdx;
mod tdx_guest;

pub(crate) use igvm_snp::Digests;

/// Predict the measurement of a guest
///
/// Prints the MEASUREMENT of an SEV-SNP attestation report or the MRTD of a TDX quote. Works on any machine:
/// without confidential hardware, KVM or privileges.
///
/// GUEST.toml is measured on every platform that it allows. --diff compares two manifests, guests,
/// firmware images or IGVM files. --search finds the number of vCPUs, CPU model, registers and command
/// line that explain the measurement of a report.
///
/// Exit status: 0 measured, no difference, or explained; 1 --diff found a difference, or --search found no
/// explanation; 2 invalid input or usage.
#[derive(clap::Args)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration of the guest to measure
    #[arg(value_name = "GUEST.toml", required_unless_present_any = ["diff", "search"])]
    guest: Option<PathBuf>,
    /// Compare two manifests, guests, firmware images or IGVM files
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["guest", "search"])]
    diff: Option<Vec<PathBuf>>,
    /// Find the guest that explains the measurement of a report or quote
    #[arg(long, value_name = "REPORT", conflicts_with = "guest")]
    search: Option<PathBuf>,
    #[command(flatten)]
    known: search::Known,
    #[command(flatten)]
    open: guest::Open,
    #[command(flatten)]
    output: output::Output,
}

#[derive(Subcommand)]
enum Command {
    Snp(snp::Args),
    Tdx(tdx::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args {
        Args { command: Some(Command::Snp(args)), .. } => snp::run(args),
        Args { command: Some(Command::Tdx(args)), .. } => tdx::run(args),
        Args { diff: Some(files), open, output, .. } => diff::run(files, open, output.format),
        Args { search: Some(report), known, output, .. } => {
            search::run(report, known, output.format)
        }
        Args { guest: Some(guest), open, output, .. } => {
            output.print_all(guest::measured(guest, open)?)
        }
        _ => bail!("give a configuration, --diff or --search"),
    }
}
