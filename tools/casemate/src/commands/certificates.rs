//! `casemate certificates`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use casemate_verify::MAX_CERTIFICATE;
use casemate_verify::snp::certificate_table;

use super::{read, read_optional};

/// Write a chip's certificates to a file for its SEV-SNP guests
///
/// Writes the certificate table (GHCB specification, "SNP Extended Guest Request") for
/// `snp.certificates` of a guest's configuration. Guests that request extended reports receive it, so
/// that verifiers do not need AMD's key distribution service. Input is DER or PEM; each certificate must be
/// issued by the next. An existing file is replaced atomically.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    /// Certificate of the key that signs reports: VCEK or VLEK
    #[arg(long, value_name = "FILE")]
    vek: PathBuf,
    /// Intermediate certificate: ASK for a VCEK, ASVK for a VLEK
    #[arg(long, value_name = "FILE")]
    ask: PathBuf,
    /// Root certificate
    #[arg(long, value_name = "FILE")]
    ark: PathBuf,
    /// Revocation list of the root
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let vek = read("endorsement key certificate", &args.vek, MAX_CERTIFICATE)?;
    let ask = read("ASK certificate", &args.ask, MAX_CERTIFICATE)?;
    let ark = read("ARK certificate", &args.ark, MAX_CERTIFICATE)?;
    let crl = read_optional("revocation list", args.crl.as_deref(), MAX_CERTIFICATE)?;
    let table = certificate_table(&vek, &ask, &ark, crl.as_deref())
        .context("could not make a certificate table")?;
    let mut part = args.out.clone().into_os_string();
    part.push(".part");
    fs::write(&part, table)
        .and_then(|()| fs::rename(&part, &args.out))
        .with_context(|| format!("could not write the table to {}", args.out.display()))?;
    Ok(ExitCode::SUCCESS)
}
