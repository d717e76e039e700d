//! `casemate broker secret`

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_broker::{Secret, SecretId, Store};
use casemate_protocol::MAX_SECRET;
use clap::Subcommand;

use super::policy::PolicyArgs;
use super::{StoreArgs, read_or_stdin};
use crate::commands::output;

/// Add, list and remove secrets
///
/// Changes take effect in a running broker at once.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a secret to the store, with policies for guests
    ///
    /// The secret includes all bytes of the input: use printf, not echo, to leave out a line end.
    Put {
        /// Name of the secret: REPOSITORY/TYPE/TAG, such as default/disk/root
        id: SecretId,
        /// File with the secret; "-" for standard input
        #[arg(long, value_name = "FILE", default_value = "-")]
        from: PathBuf,
        /// Replace the secret of this name
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        policy: PolicyArgs,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Print the names of all secrets
    List(StoreArgs),
    /// Remove a secret from the store
    Remove {
        /// Name of the secret
        id: SecretId,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// The secret of this name, or an error that says what to do.
pub(super) fn existing(store: &Store, id: &SecretId) -> anyhow::Result<Secret> {
    let missing = || {
        let id = id.as_ref();
        format!("there is no secret {id}; casemate broker secret list prints those there are")
    };
    store.get(id)?.with_context(missing)
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Put { id, from, replace, policy, store } => {
            ensure!(
                !(store.key_is_stdin() && from == Path::new("-")),
                "the key and the secret cannot both come on standard input: use --from or a key file"
            );
            let policy = policy.read()?;
            let store = store.open()?;
            let name = id.as_ref();
            ensure!(
                *replace || store.get(id)?.is_none(),
                "there is a secret {name} already; say --replace to overwrite it"
            );
            let value = read_or_stdin("secret", from, MAX_SECRET)?;
            ensure!(!value.is_empty(), "the secret is empty");
            let length = value.len();
            store.put(id, &Secret { value, policy })?;
            writeln!(output(), "{name}: {length} bytes are in the store")?;
        }
        Command::List(store) => {
            let mut out = output();
            for name in store.open()?.list()? {
                writeln!(out, "{name}")?;
            }
        }
        Command::Remove { id, store } => {
            let store = store.open()?;
            existing(&store, id)?;
            store.remove(id)?;
            writeln!(output(), "{} is no longer in the store", id.as_ref())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
