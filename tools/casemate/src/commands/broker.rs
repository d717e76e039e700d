//! `casemate broker`

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_broker::{Store, StoreKey};
use clap::Subcommand;
use zeroize::Zeroizing;

use super::read;

mod memory;
mod policy;
mod secret;
mod serve;

/// Keep secrets, and give them only to guests that prove themselves
///
/// A first run. The guest's command line gets casemate.broker_key= with the key that the second command
/// prints, and policy.json the measurement that `casemate measure` then predicts:
///
///   casemate broker key > store.key
///   casemate broker release-key --store store --key store.key
///   casemate broker secret put default/disk/root --store store --key store.key \
///       --snp-policy policy.json < passphrase
///   casemate broker serve --store store --key store.key --audit audit.jsonl
///
/// and in the guest:
///
///   casemate-agent unlock --secret default/disk/root --device /dev/vda2 --name root
///
/// Nothing is given out by default: a secret has a policy, and a guest's evidence has to fulfil it.
/// Each release and each refusal is a record in the audit log (see casemate audit).
#[derive(clap::Args)]
#[command(arg_required_else_help = true, verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a fresh key for a store: 64 hexadecimal digits
    ///
    /// Whoever has the key and the store has the secrets: keep it apart from the store.
    Key,
    Serve(serve::Args),
    Secret(secret::Args),
    Policy(policy::Args),
    /// Print the public key of the store's tokens as a JSON web key set
    TokenKey(StoreArgs),
    /// Print the public key of the store's releases, for guests to pin
    ///
    /// On a guest's measured command line: casemate.broker_key=KEY. The guest's agent then takes secrets
    /// from a broker with this store only.
    ReleaseKey(StoreArgs),
}

/// The store, and the key to it.
#[derive(clap::Args)]
pub(super) struct StoreArgs {
    /// The store's file; made if it is not there
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// The store's key, as `casemate broker key` prints it; "-" for standard input
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

impl StoreArgs {
    pub(super) fn open(&self) -> anyhow::Result<Store> {
        let text = read_or_stdin("key", &self.key, 1024)?;
        let key = StoreKey::parse(&text)
            .with_context(|| format!("could not use the key in {}", self.key.display()))?;
        Ok(Store::open(&self.store, key)?)
    }

    /// Whether the key comes on standard input, so that nothing else can.
    fn key_is_stdin(&self) -> bool {
        self.key == Path::new("-")
    }
}

/// Reads a file of at most `limit` bytes, or standard input for "-".
fn read_or_stdin(what: &str, path: &Path, limit: usize) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    if path != Path::new("-") {
        return read(what, path, limit).map(Zeroizing::new);
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    std::io::stdin()
        .take(more)
        .read_to_end(&mut bytes)
        .with_context(|| format!("could not read the {what} from standard input"))?;
    ensure!(bytes.len() <= limit, "the {what} on standard input is longer than {limit} bytes");
    Ok(bytes)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    memory::deny_core_files();
    match &args.command {
        Command::Key => {
            let key = StoreKey::generate()?;
            writeln!(super::output(), "{}", *key.to_text())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(args) => serve::run(args),
        Command::Secret(args) => secret::run(args),
        Command::Policy(args) => policy::run(args),
        Command::ReleaseKey(args) => {
            writeln!(super::output(), "{}", args.open()?.release_key()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::TokenKey(args) => {
            writeln!(super::output(), "{:#}", args.open()?.token_keys()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
