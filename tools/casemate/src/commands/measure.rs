//! `casemate measure`

use std::process::ExitCode;

use clap::Subcommand;

mod igvm_snp;
mod output;
mod snp;
pub(crate) mod tdx;

pub(crate) use igvm_snp::Digests;

/// Compute what a guest measures to, before anything runs
///
/// Needs no confidential hardware, no KVM and no privileges. The value is the MEASUREMENT of an
/// SEV-SNP attestation report, or the MRTD of a TDX quote.
///
/// Exit status: 0 measured, 2 the input cannot be measured truthfully, or bad usage.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    platform: Platform,
}

#[derive(Subcommand)]
enum Platform {
    Snp(snp::Args),
    Tdx(tdx::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.platform {
        Platform::Snp(args) => snp::run(args),
        Platform::Tdx(args) => tdx::run(args),
    }
}
