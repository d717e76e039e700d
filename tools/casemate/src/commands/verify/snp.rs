//! `casemate verify snp`

use std::path::PathBuf;
use std::process::ExitCode;

use casemate_verify::snp::{self, CertificateTable, SnpEvidence};
use casemate_verify::{Judgement, MAX_CERTIFICATE, MAX_INPUT, SnpPolicy};

use super::{Common, Guest, PlatformKind, output, read, read_optional, require};

/// Judge an SEV-SNP attestation report
///
/// Certificates and the revocation list are DER or PEM. AMD's roots for Milan, Genoa and Turin are
/// built in: the ARK given must be one of them. The chip's certificate and the list come from AMD's
/// key distribution service, or from the host together with the report.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The report, 1184 bytes
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// Certificate of the key that signed it, VCEK or VLEK
    ///
    /// The table of certificates that the host gave the guest (auxblob) is read as well.
    #[arg(long, value_name = "FILE")]
    vek: PathBuf,
    /// Certificate above it, ASK or ASVK [default: AMD's, built in]
    #[arg(long, value_name = "FILE", requires = "ark")]
    ask: Option<PathBuf>,
    /// The root certificate [default: AMD's, built in]
    #[arg(long, value_name = "FILE", requires = "ask")]
    ark: Option<PathBuf>,
    /// The root's revocation list
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Also trust this root, for tests only
    ///
    /// Evidence under it proves nothing, and the result says TEST.
    #[arg(long, value_name = "FILE")]
    test_root: Option<PathBuf>,
    #[command(flatten)]
    guest: Guest,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let policy = read_optional("policy", args.common.policy.as_deref(), MAX_INPUT)?;
    let report = read("report", &args.report, MAX_CERTIFICATE)?;
    let vek = read("endorsement key certificate", &args.vek, MAX_CERTIFICATE)?;
    let ask = read_optional("ASK certificate", args.ask.as_deref(), MAX_CERTIFICATE)?;
    let ark = read_optional("ARK certificate", args.ark.as_deref(), MAX_CERTIFICATE)?;
    let crl = read_optional("revocation list", args.crl.as_deref(), MAX_CERTIFICATE)?;
    let test_root = read_optional("test root", args.test_root.as_deref(), MAX_CERTIFICATE)?;
    let table = CertificateTable::parse(&vek).ok().filter(|table| {
        // A certificate is no table: one that is read as an empty table is judged as what it is.
        table.vcek.or(table.vlek).is_some()
    });
    let table =
        table.unwrap_or(CertificateTable { vcek: Some(&vek), ..CertificateTable::default() });
    let veks: Vec<&[u8]> = table.vcek.into_iter().chain(table.vlek).collect();
    let vek = snp::choose_vek(&report, &veks).or(veks.first().copied()).unwrap_or_default();
    let given = ask.as_deref().zip(ark.as_deref());
    let issuers = given.or_else(|| snp::chain_for(vek)).or(table.ask.zip(table.ark));
    let (ask, ark) = issuers.unwrap_or_default();
    let crl = crl.as_deref().or(table.crl);
    let evidence = SnpEvidence { report: &report, vek, ask, ark, crl };
    let policy = policy.map_or(Ok(SnpPolicy::strict()), |json| SnpPolicy::from_json(&json));
    let (judgement, open) = match policy {
        Ok(mut policy) => {
            if let Some(expected) = args.guest.expected(PlatformKind::Snp)? {
                require(&mut policy.measurements, expected.measurement.0);
                require(&mut policy.host_data, expected.host_data);
            }
            args.guest.require_nonce(&mut policy.report_data);
            let at = args.common.at();
            let judgement = snp::verify(&evidence, &policy, test_root.as_deref(), at);
            (judgement.erase(), policy.weaknesses())
        }
        Err(error) => (Judgement::policy_invalid(&error), Vec::new()),
    };
    output::print(&judgement, &open, &args.common)
}
