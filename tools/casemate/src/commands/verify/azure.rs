//! `casemate verify azure`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_protocol::Nonce;
use casemate_verify::azure::{self, AzureEvidence, AzureFiles, AzurePolicy};
use casemate_verify::tpm::QuoteParts;
use casemate_verify::{Judgement, MAX_CERTIFICATE, MAX_INPUT};

use super::{Common, output, read_optional};

/// Judge the evidence of an Azure guest, SEV-SNP or TDX
///
/// The hardware report names the paravisor and its firmware; what booted is in the registers of the virtual
/// TPM, which the quote proves. Evidence is one JSON object, as Trustee's clients send it, or a file for each
/// part. AMD's and Intel's roots, ASK and ARK are built in.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// All parts as JSON: hcl_report, tpm_quote, and vcek or td_quote
    #[arg(long, value_name = "FILE", conflicts_with = "hcl", required_unless_present = "hcl")]
    evidence: Option<PathBuf>,
    /// The paravisor's report: NV index 0x01400001 of the virtual TPM
    #[arg(long, value_name = "FILE")]
    hcl: Option<PathBuf>,
    /// The quote's attestation structure (TPMS_ATTEST)
    #[arg(long, value_name = "FILE", requires = "quote_signature", conflicts_with = "evidence")]
    quote_message: Option<PathBuf>,
    /// The quote's RSA signature, without a header
    #[arg(long, value_name = "FILE", requires = "pcrs")]
    quote_signature: Option<PathBuf>,
    /// The values of the selected registers, 32 bytes each
    #[arg(long, value_name = "FILE", requires = "quote_message")]
    pcrs: Option<PathBuf>,
    /// SEV-SNP: the certificate of the chip's key
    #[arg(long, value_name = "FILE")]
    vek: Option<PathBuf>,
    /// SEV-SNP: certificate above it [default: AMD's, built in]
    #[arg(long, value_name = "FILE", requires = "ark")]
    ask: Option<PathBuf>,
    /// SEV-SNP: root certificate [default: AMD's, built in]
    #[arg(long, value_name = "FILE", requires = "ask")]
    ark: Option<PathBuf>,
    /// SEV-SNP: the root's revocation list
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// TDX: the quote for the report in the paravisor's report
    #[arg(long, value_name = "FILE")]
    td_quote: Option<PathBuf>,
    /// TDX: what Intel publishes about the platform, as JSON
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// Also trust this root, for tests only
    ///
    /// Evidence under it proves nothing, and the result says TEST.
    #[arg(long, value_name = "FILE")]
    test_root: Option<PathBuf>,
    /// Nonce that the quote must have; replaces the policy's
    #[arg(long, value_name = "HEX")]
    nonce: Option<Nonce>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = |what, path: &Option<PathBuf>| read_optional(what, path.as_deref(), MAX_CERTIFICATE);
    let policy = read_optional("policy", args.common.policy.as_deref(), MAX_INPUT)?;
    let json = read_optional("evidence", args.evidence.as_deref(), MAX_INPUT)?;
    let files = json.map(|json| AzureFiles::from_json(&json)).transpose();
    let files = files.context("could not read the evidence")?;
    let hcl = file("paravisor's report", &args.hcl)?;
    let message = file("quote", &args.quote_message)?;
    let signature = file("quote's signature", &args.quote_signature)?;
    let registers = file("registers", &args.pcrs)?;
    let vek = file("endorsement key certificate", &args.vek)?;
    let ask = file("ASK certificate", &args.ask)?;
    let ark = file("ARK certificate", &args.ark)?;
    let test_root = file("test root", &args.test_root)?;
    let crl = file("revocation list", &args.crl)?;
    let td_quote = file("TD quote", &args.td_quote)?;
    let collateral = read_optional("collateral", args.collateral.as_deref(), MAX_INPUT)?;

    let mut evidence = files.as_ref().map(AzureFiles::evidence).unwrap_or_default();
    if let Some(hcl) = &hcl {
        evidence.hcl = hcl;
    }
    if let (Some(message), Some(signature), Some(registers)) = (&message, &signature, &registers) {
        evidence.quote = Some(QuoteParts { message, signature, registers });
    }
    ensure!(
        vek.is_none() || evidence.vek.is_none(),
        "the evidence has a certificate of the chip already: remove --vek"
    );
    let evidence = AzureEvidence {
        vek: vek.as_deref().or(evidence.vek),
        issuers: ask.as_deref().zip(ark.as_deref()),
        crl: crl.as_deref(),
        td_quote: td_quote.as_deref().or(evidence.td_quote),
        collateral: collateral.as_deref(),
        ..evidence
    };
    let policy = policy.map_or(Ok(AzurePolicy::strict()), |json| AzurePolicy::from_json(&json));
    let (judgement, open) = match policy {
        Ok(mut policy) => {
            if let Some(nonce) = &args.nonce {
                policy.tpm.nonce = Some(nonce.as_ref().to_vec());
            }
            let judgement =
                azure::verify(&evidence, &policy, test_root.as_deref(), args.common.at());
            (judgement.erase(), policy.weaknesses())
        }
        Err(error) => (Judgement::policy_invalid(&error), Vec::new()),
    };
    output::print(&judgement, &open, &args.common)
}
