//! `casemate verify nitro`

use std::path::PathBuf;
use std::process::ExitCode;

use casemate_protocol::Nonce;
use casemate_verify::nitro::{self, NitroPolicy};
use casemate_verify::{Judgement, MAX_CERTIFICATE, MAX_INPUT};

use super::{Common, output, read, read_optional};

/// Judge the attestation document of an AWS Nitro enclave or NitroTPM
///
/// AWS's root is built in. Certificates of enclaves are valid for three hours: judge archived documents with
/// --at. An enclave in debug mode is never accepted.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The document, COSE_Sign1
    #[arg(long, value_name = "FILE")]
    document: PathBuf,
    /// The nonce that the document must have; replaces the policy's
    #[arg(long, value_name = "HEX")]
    nonce: Option<Nonce>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let policy = read_optional("policy", args.common.policy.as_deref(), MAX_INPUT)?;
    let document = read("document", &args.document, MAX_CERTIFICATE)?;
    let policy = policy.map_or(Ok(NitroPolicy::default()), |json| NitroPolicy::from_json(&json));
    let (judgement, open) = match policy {
        Ok(mut policy) => {
            if let Some(nonce) = &args.nonce {
                policy.nonce = Some(nonce.as_ref().to_vec());
            }
            let judgement = nitro::verify(&document, &policy, args.common.at());
            (judgement.erase(), policy.weaknesses())
        }
        Err(error) => (Judgement::policy_invalid(&error), Vec::new()),
    };
    output::print(&judgement, &open, &args.common)
}
