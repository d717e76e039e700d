//! `casemate certificates`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use casemate_verify::MAX_CERTIFICATE;
use casemate_verify::snp::certificate_table;

use super::{read, read_optional};

/// Put a chip's certificates together for its SEV-SNP guests
///
/// Writes the certificate table (GHCB specification, "SNP Extended Guest Request") that
/// `snp.certificates` of a guest's configuration names: guests that ask for it have it with each
/// report, and whoever verifies the report need not ask AMD. What is given is DER or PEM; that each
/// certificate was issued by the next is checked. A file that is there is replaced at once, never in
/// part.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    /// The certificate of the key that signs reports: VCEK or VLEK
    #[arg(long, value_name = "FILE")]
    vek: PathBuf,
    /// The certificate above it: ASK for a VCEK, ASVK for a VLEK
    #[arg(long, value_name = "FILE")]
    ask: PathBuf,
    /// The root certificate
    #[arg(long, value_name = "FILE")]
    ark: PathBuf,
    /// The root's revocation list
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Where to write the table
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let vek = read("endorsement key certificate", &args.vek, MAX_CERTIFICATE)?;
    let ask = read("ASK certificate", &args.ask, MAX_CERTIFICATE)?;
    let ark = read("ARK certificate", &args.ark, MAX_CERTIFICATE)?;
    let crl = read_optional("revocation list", args.crl.as_deref(), MAX_CERTIFICATE)?;
    let table = certificate_table(&vek, &ask, &ark, crl.as_deref())
        .context("these certificates make no table")?;
    let mut part = args.out.clone().into_os_string();
    part.push(".part");
    fs::write(&part, table)
        .and_then(|()| fs::rename(&part, &args.out))
        .with_context(|| format!("could not write the table to {}", args.out.display()))?;
    Ok(ExitCode::SUCCESS)
}
