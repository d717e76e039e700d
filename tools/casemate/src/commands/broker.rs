//! `casemate broker`

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
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

/// Store secrets and release them only to verified guests
///
/// To start, put the key that release-key prints on the guest's command line as casemate.broker_key=KEY, and
/// the measurement that `casemate measure` then predicts into policy.json:
///
///   casemate broker key store.key
///   casemate broker release-key --store store --key store.key
///   casemate broker secret put default/disk/root --store store --key store.key \
///       --snp-policy policy.json < passphrase
///   casemate broker serve --store store --key store.key --audit audit.jsonl
///
/// and in the guest:
///
///   casemate-agent unlock --secret default/disk/root --device /dev/vda2 --name root
///
/// A secret is released only to guests whose evidence fulfils its policy. The audit log records each
/// release and refusal (see casemate audit).
#[derive(clap::Args)]
#[command(arg_required_else_help = true, verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a new store key to a file that only its owner can read
    ///
    /// The key has 64 hexadecimal digits. With key and store anybody can read the secrets: keep them apart.
    Key {
        /// New file
        file: PathBuf,
    },
    Serve(serve::Args),
    Secret(secret::Args),
    Policy(policy::Args),
    /// Back up the store to a new file, also while a broker runs
    ///
    /// To restore, replace the store by the file, remove FILE-wal and FILE-shm, and pass --restored to the
    /// first casemate broker serve.
    Backup {
        /// New file
        to: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Print the public key of tokens as a JSON web key set
    TokenKey(StoreArgs),
    /// Print the public key of releases, for guests to pin
    ///
    /// Pin it on the guest's measured command line with casemate.broker_key=KEY. The guest's agent then
    /// accepts secrets only from brokers with this store.
    ReleaseKey(StoreArgs),
}

/// The store, and the key to it.
#[derive(clap::Args)]
pub(super) struct StoreArgs {
    /// Store; created if missing
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// Key of the store, from `casemate broker key`; "-" for standard input
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

impl StoreArgs {
    pub(super) fn open(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.store, read_key(&self.key)?)?)
    }

    /// Opens a store that is there.
    pub(super) fn open_existing(&self) -> anyhow::Result<Store> {
        ensure!(self.store.exists(), "there is no store {}", self.store.display());
        self.open()
    }

    /// Whether the key comes on standard input, so that nothing else can.
    fn key_is_stdin(&self) -> bool {
        self.key == Path::new("-")
    }
}

/// Reads a store's key from a file that others cannot read, or from standard input for "-".
pub(crate) fn read_key(path: &Path) -> anyhow::Result<StoreKey> {
    if path != Path::new("-") {
        let found = std::fs::metadata(path)
            .with_context(|| format!("could not read the key from {}", path.display()))?;
        // The group root reads everything anyway: keys that systemd hands over are its.
        let others = if found.gid() == 0 { 0o007 } else { 0o077 };
        ensure!(
            !found.is_file() || found.mode() & others == 0,
            "the key {} is not secret: others can read it (mode {:o}); make a new one with casemate \
             broker key, or chmod 600 the file if nobody has read it",
            path.display(),
            found.mode() & 0o777
        );
    }
    let text = read_or_stdin("key", path, 1024)?;
    StoreKey::parse(&text).with_context(|| format!("could not use the key in {}", path.display()))
}

fn make_key(path: &Path) -> anyhow::Result<()> {
    let key = StoreKey::generate()?;
    let mut file = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("could not make the key {}", path.display()))?;
    writeln!(file, "{}", *key.to_text())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("could not write the key to {}", path.display()))
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
        Command::Key { file } => {
            make_key(file)?;
            writeln!(super::output(), "the key is in {}", file.display())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Backup { to, store } => {
            store.open_existing()?.backup(to)?;
            writeln!(super::output(), "the copy is in {}", to.display())?;
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
