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

/// Put secrets into a store, list them, and take them out
///
/// A running broker sees changes at once.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put a secret into the store, with the policies that guests have to fulfil
    ///
    /// The secret is read byte for byte: printf, not echo, if a line end is not part of it.
    Put {
        /// The secret's name: REPOSITORY/TYPE/TAG, for example default/disk/root
        id: SecretId,
        /// Where the secret comes from; "-" for standard input
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
    /// Take a secret out of the store
    Remove {
        /// The secret's name
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
