//! `casemate verify google`

use std::path::PathBuf;
use std::process::ExitCode;

use casemate_protocol::Nonce;
use casemate_verify::google::{self, GooglePolicy};
use casemate_verify::{Judgement, MAX_CERTIFICATE, MAX_INPUT};

use super::{Common, output, read, read_optional};

/// Judge an attestation of the virtual TPM of a Google machine
///
/// It proves a machine of Google's and what it booted. The TPM is the host's: whether the machine's memory is
/// encrypted is proven by the report or quote of its processor alone (casemate verify snp, tdx). Google's roots
/// are built in.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The message Attestation of Google's TPM client, as protocol buffers
    #[arg(long, value_name = "FILE")]
    attestation: PathBuf,
    /// Certificate between the key's and a root; repeatable
    ///
    /// Needed if the attestation does not have it.
    #[arg(long, value_name = "FILE")]
    intermediate: Vec<PathBuf>,
    /// Nonce that the quote must have; replaces the policy's
    #[arg(long, value_name = "HEX")]
    nonce: Option<Nonce>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let policy = read_optional("policy", args.common.policy.as_deref(), MAX_INPUT)?;
    let attestation = read("attestation", &args.attestation, MAX_INPUT)?;
    let certificates = args.intermediate.iter();
    let certificates: Vec<Vec<u8>> = certificates
        .map(|path| read("intermediate certificate", path, MAX_CERTIFICATE))
        .collect::<Result<_, _>>()?;
    let intermediates: Vec<&[u8]> = certificates.iter().map(Vec::as_slice).collect();
    let policy = policy.map_or(Ok(GooglePolicy::default()), |json| GooglePolicy::from_json(&json));
    let (judgement, open) = match policy {
        Ok(mut policy) => {
            if let Some(nonce) = &args.nonce {
                policy.tpm.nonce = Some(nonce.as_ref().to_vec());
            }
            let judgement = google::verify(&attestation, &intermediates, &policy, args.common.at());
            (judgement.erase(), policy.weaknesses())
        }
        Err(error) => (Judgement::policy_invalid(&error), Vec::new()),
    };
    output::print(&judgement, &open, &args.common)
}
