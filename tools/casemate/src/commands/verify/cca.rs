//! `casemate verify cca`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use casemate_verify::cca::{self, CcaPolicy, PlatformKey};
use casemate_verify::{Judgement, MAX_CERTIFICATE, MAX_INPUT};

use super::{Common, output, read, read_optional};

/// Judge a token of Arm CCA
///
/// The platform's key is the trust anchor: get it from the platform's maker, by the implementation and the
/// instance that the token names. Public samples are signed with test keys that everybody has.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The token: a CCA collection, CBOR
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    /// The platform's public key, a JSON web key
    #[arg(long, value_name = "FILE")]
    platform_key: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let policy = read_optional("policy", args.common.policy.as_deref(), MAX_INPUT)?;
    let token = read("token", &args.token, MAX_CERTIFICATE)?;
    let key = read_optional("platform key", args.platform_key.as_deref(), MAX_CERTIFICATE)?;
    let key = key.map(|json| PlatformKey::from_jwk(&json)).transpose();
    let key = key.context("could not read the platform key")?;
    let policy = policy.map_or(Ok(CcaPolicy::default()), |json| CcaPolicy::from_json(&json));
    let (judgement, open) = match policy {
        Ok(policy) => {
            let judgement = cca::verify(&token, key.as_ref(), &policy);
            (judgement.erase(), policy.weaknesses())
        }
        Err(error) => (Judgement::policy_invalid(&error), Vec::new()),
    };
    output::print(&judgement, &open, &args.common)
}
