//! `casemate verify tdx`

use std::path::PathBuf;
use std::process::ExitCode;

use casemate_verify::tdx::{self, TdxEvidence};
use casemate_verify::{Judgement, MAX_CERTIFICATE, MAX_INPUT, TdxPolicy};

use super::{Common, Guest, PlatformKind, output, read, read_optional, require};

/// Judge a TDX quote
///
/// Intel's root is built in. Collateral is one JSON object with tcb_info, qe_identity, root_ca_crl,
/// pck_crl, their signatures and issuer chains, as Intel's and cloud providers' caching services give
/// it. Without it, a genuine quote ends as "no-collateral": nothing says whether the platform is good.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The quote, version 4 or 5
    #[arg(long, value_name = "FILE")]
    quote: PathBuf,
    /// What Intel publishes about the platform, as JSON
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// Event log of the guest, CCEL or a JSON list
    ///
    /// It must give the quote's four RTMRs.
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
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
    let quote = read("quote", &args.quote, MAX_INPUT)?;
    let collateral = read_optional("collateral", args.collateral.as_deref(), MAX_INPUT)?;
    let event_log = read_optional("event log", args.event_log.as_deref(), MAX_INPUT)?;
    let test_root = read_optional("test root", args.test_root.as_deref(), MAX_CERTIFICATE)?;
    let evidence = TdxEvidence {
        quote: &quote,
        collateral: collateral.as_deref(),
        event_log: event_log.as_deref(),
    };
    let policy = policy.map_or(Ok(TdxPolicy::strict()), |json| TdxPolicy::from_json(&json));
    let (judgement, open) = match policy {
        Ok(mut policy) => {
            if let Some(expected) = args.guest.expected(PlatformKind::Tdx)? {
                require(&mut policy.mrtd, expected.measurement.0);
                require(&mut policy.mrconfigid, expected.mrconfigid);
            }
            args.guest.require_nonce(&mut policy.report_data);
            let at = args.common.at();
            let judgement = tdx::verify(&evidence, &policy, test_root.as_deref(), at);
            (judgement.erase(), policy.weaknesses())
        }
        Err(error) => (Judgement::policy_invalid(&error), Vec::new()),
    };
    output::print(&judgement, &open, &args.common)
}
