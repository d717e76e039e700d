//! `casemate broker policy`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_broker::{ReleasePolicy, SecretId};
use casemate_verify::MAX_INPUT;
use clap::Subcommand;

use super::StoreArgs;
use crate::commands::{output, read};

/// Look at or change whom a secret is given to
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replace a secret's policies
    ///
    /// A policy that is not given is removed: guests of that kind no longer get the secret.
    Set {
        /// Name of the secret: REPOSITORY/TYPE/TAG
        id: SecretId,
        #[command(flatten)]
        policy: PolicyArgs,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Print a secret's policies as JSON
    Show {
        /// Name of the secret: REPOSITORY/TYPE/TAG
        id: SecretId,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// Whom a secret is given to.
#[derive(clap::Args)]
pub(super) struct PolicyArgs {
    /// Policy for SEV-SNP guests, JSON as for casemate verify snp
    #[arg(long, value_name = "FILE")]
    snp_policy: Option<PathBuf>,
    /// Policy for TDX guests, JSON as for casemate verify tdx
    #[arg(long, value_name = "FILE")]
    tdx_policy: Option<PathBuf>,
    /// Policy for Azure's guests, JSON as for casemate verify azure
    #[arg(long, value_name = "FILE")]
    azure_policy: Option<PathBuf>,
    /// Accept a policy with open conditions (see casemate policy check), or none
    #[arg(long)]
    accept_weak_policy: bool,
}

impl PolicyArgs {
    /// Reads the files. A policy that leaves something open is an error, unless that was accepted.
    pub(super) fn read(&self) -> anyhow::Result<ReleasePolicy> {
        let text = |path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            let text = read("policy", path, MAX_INPUT).and_then(|bytes| {
                String::from_utf8(bytes)
                    .with_context(|| format!("the policy {} is not text", path.display()))
            });
            Some(text)
        };
        let policy = ReleasePolicy {
            snp: text(&self.snp_policy).transpose()?,
            tdx: text(&self.tdx_policy).transpose()?,
            azure: text(&self.azure_policy).transpose()?,
        };
        let open = policy.check().context("could not use the policy")?;
        for (platform, weakness) in &open {
            eprintln!("casemate: the {platform} policy is weak: {weakness}");
        }
        ensure!(
            open.is_empty() || self.accept_weak_policy,
            "the secret would not be safe; add the missing keys to the policy, or pass \
             --accept-weak-policy"
        );
        ensure!(
            !policy.is_empty() || self.accept_weak_policy,
            "nobody could have the secret; pass --snp-policy, --tdx-policy or --azure-policy, or \
             --accept-weak-policy"
        );
        Ok(policy)
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Set { id, policy, store } => {
            let policy = policy.read()?;
            let store = store.open()?;
            let secret = super::secret::existing(&store, id)?;
            store.put(id, &casemate_broker::Secret { policy, ..secret })?;
            writeln!(output(), "{} has new policies", id.as_ref())?;
        }
        Command::Show { id, store } => {
            let ReleasePolicy { snp, tdx, azure } =
                super::secret::existing(&store.open()?, id)?.policy;
            let json = |text: Option<String>| -> anyhow::Result<serde_json::Value> {
                Ok(text.map_or(Ok(serde_json::Value::Null), |text| serde_json::from_str(&text))?)
            };
            let policies = serde_json::json!({
                "snp": json(snp)?, "tdx": json(tdx)?, "azure": json(azure)?,
            });
            writeln!(output(), "{policies:#}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
