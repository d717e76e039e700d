//! The store: SQLite, every value encrypted, every change on disk before it is reported as done.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casemate_foreign::{Foreign, MAX_SHOWN, cut};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::policy::ReleasePolicy;
use crate::seal::StoreKey;

/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(5);
const FORMAT: i64 = 1;

/// The name of a secret: `REPOSITORY/TYPE/TAG`, each of letters, digits, `-`, `_` and `.`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretId(String);

/// Not a secret's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{}\" is no name of a secret: write REPOSITORY/TYPE/TAG, each 1 to 64 letters, digits, '-', '_' \
     or '.', and not beginning with '.'",
    Foreign(.0)
)]
pub struct SecretIdError(String);

impl FromStr for SecretId {
    type Err = SecretIdError;

    fn from_str(text: &str) -> Result<Self, SecretIdError> {
        let good = |part: &str| {
            (1..=64).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if text.split('/').count() == 3 && text.split('/').all(good) {
            Ok(SecretId(text.to_owned()))
        } else {
            // Text from the network can be long.
            Err(SecretIdError(cut(text, MAX_SHOWN + 1).to_owned()))
        }
    }
}

impl AsRef<str> for SecretId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A secret and whom it may go to.
pub struct Secret {
    /// The bytes.
    pub value: Zeroizing<Vec<u8>>,
    /// The policies.
    pub policy: ReleasePolicy,
}

/// How a [`Secret`] is written.
#[derive(Serialize, Deserialize)]
struct SecretRow {
    policy: ReleasePolicy,
    value: Vec<u8>,
}

/// A store that does not work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made or opened.
    #[error("could not open the store {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite fails.
    #[error("the store failed to {step}")]
    Sqlite {
        /// At what.
        step: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// Another program's file, or another version's.
    #[error("the store has the format {0}; this program knows the format {FORMAT}")]
    Format(i64),
    /// A value does not decrypt.
    #[error(
        "\"{0}\" in the store does not open: the key is another store's, or the file was changed"
    )]
    Sealed(String),
    /// The system has no randomness.
    #[error("the system gave no random bytes")]
    Random,
}

/// The kinds of values. A value opens only as its kind and under its name.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// One value that every store has: it tells a wrong key at once.
    Check,
    Secret,
    /// The key that signs tokens.
    SigningKey,
    /// The key that signs releases.
    ReleaseKey,
    /// Where the audit log ends.
    AuditHead,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Check => "check",
            Kind::Secret => "secret",
            Kind::SigningKey => "signing-key",
            Kind::ReleaseKey => "release-key",
            Kind::AuditHead => "audit-head",
        }
    }
}

/// The store.
pub struct Store {
    connection: Mutex<Connection>,
    key: StoreKey,
}

impl Store {
    /// Opens the store at `path`; makes an empty one, readable by its owner only, if there is none.
    ///
    /// # Errors
    /// The file cannot be opened, is no store, or is another key's.
    pub fn open(path: &Path, key: StoreKey) -> Result<Self, StoreError> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        let connection = prepare(path)?;
        let store = Store { connection: Mutex::new(connection), key };
        if store.read(Kind::Check, "")?.is_none() {
            store.write(Kind::Check, "", b"casemate")?;
        }
        Ok(store)
    }

    /// Puts a secret in, in the place of an earlier one of that name.
    ///
    /// # Errors
    /// It is not certain that the secret is on disk.
    pub fn put(&self, id: &SecretId, secret: &Secret) -> Result<(), StoreError> {
        let mut row = SecretRow { policy: secret.policy.clone(), value: secret.value.to_vec() };
        let json = serde_json::to_vec(&row).map(Zeroizing::new);
        row.value.zeroize();
        let json = json.map_err(|_| StoreError::Sealed(id.0.clone()))?;
        self.write(Kind::Secret, &id.0, &json)
    }

    /// The secret called `id`, if there is one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, id: &SecretId) -> Result<Option<Secret>, StoreError> {
        let Some(json) = self.read(Kind::Secret, &id.0)? else { return Ok(None) };
        let row: SecretRow =
            serde_json::from_slice(&json).map_err(|_| StoreError::Sealed(id.0.clone()))?;
        Ok(Some(Secret { value: Zeroizing::new(row.value), policy: row.policy }))
    }

    /// The names of all secrets, in order.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let failed = |source| StoreError::Sqlite { step: "list the secrets", source };
        let connection = self.connection();
        let mut statement = connection
            .prepare("SELECT name FROM sealed WHERE kind = ?1 ORDER BY name")
            .map_err(failed)?;
        let names = statement.query_map([Kind::Secret.name()], |row| row.get(0)).map_err(failed)?;
        names.collect::<Result<_, _>>().map_err(failed)
    }

    /// Takes a secret out; `false` when there was none.
    ///
    /// # Errors
    /// It is not certain that the secret is gone from the disk.
    pub fn remove(&self, id: &SecretId) -> Result<bool, StoreError> {
        let failed = |source| StoreError::Sqlite { step: "remove the secret", source };
        let connection = self.connection();
        let removed = connection
            .execute(
                "DELETE FROM sealed WHERE kind = ?1 AND name = ?2",
                params![Kind::Secret.name(), id.0],
            )
            .map_err(failed)?;
        // The write-ahead log still has the old page; move it into the file, which is overwritten.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)?;
        Ok(removed > 0)
    }

    /// Writes a whole copy of the store, as it is now, to a new file that its owner alone can read. A
    /// running broker goes on.
    ///
    /// # Errors
    /// There is a file already, or it is not certain that the copy is on disk.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let file = |source| StoreError::File { path: to.to_owned(), source };
        // SQLite takes an empty file for a new one.
        let made =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(to).map_err(file)?;
        let name = to.to_str().ok_or_else(|| file(io::ErrorKind::InvalidFilename.into()))?;
        self.connection()
            .execute("VACUUM INTO ?1", [name])
            .map_err(|source| StoreError::Sqlite { step: "copy itself", source })?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(file)?;
        made.sync_all().and_then(|()| folder.sync_all()).map_err(file)
    }

    pub(crate) fn read(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let sealed: Option<Vec<u8>> = self
            .connection()
            .query_row(
                "SELECT value FROM sealed WHERE kind = ?1 AND name = ?2",
                params![kind.name(), name],
                |row| row.get(0),
            )
            .optional()
            .map_err(|source| StoreError::Sqlite { step: "read a value", source })?;
        let Some(sealed) = sealed else { return Ok(None) };
        match self.key.open(&context(kind, name), &sealed) {
            Some(value) => Ok(Some(value)),
            None => Err(StoreError::Sealed(format!("{} {name}", kind.name()).trim().to_owned())),
        }
    }

    /// The value of this kind that there is one of; what `make` returns if there is none yet. Of several
    /// processes that find none at the same time, all get the same one.
    pub(crate) fn read_or_make(
        &self,
        kind: Kind,
        make: impl FnOnce() -> Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        if let Some(value) = self.read(kind, "")? {
            return Ok(value);
        }
        let value = make().ok_or(StoreError::Random)?;
        let sealed = self.key.seal(&context(kind, ""), &value).ok_or(StoreError::Random)?;
        self.connection()
            .execute(
                "INSERT OR IGNORE INTO sealed (kind, name, value) VALUES (?1, '', ?2)",
                params![kind.name(), sealed],
            )
            .map_err(|source| StoreError::Sqlite { step: "write a value", source })?;
        self.read(kind, "")?.ok_or_else(|| StoreError::Sealed(kind.name().to_owned()))
    }

    pub(crate) fn write(&self, kind: Kind, name: &str, value: &[u8]) -> Result<(), StoreError> {
        let sealed = self.key.seal(&context(kind, name), value).ok_or(StoreError::Random)?;
        self.connection()
            .execute(
                "INSERT OR REPLACE INTO sealed (kind, name, value) VALUES (?1, ?2, ?3)",
                params![kind.name(), name, sealed],
            )
            .map(|_| ())
            .map_err(|source| StoreError::Sqlite { step: "write a value", source })
    }

    pub(crate) fn key(&self) -> &StoreKey {
        &self.key
    }

    /// A thread that panicked left no transaction open: each statement is one.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn context(kind: Kind, name: &str) -> Vec<u8> {
    format!("casemate store {FORMAT}\0{}\0{name}", kind.name()).into_bytes()
}

/// Opens the file as a store. With a write-ahead log and `synchronous = FULL` a statement that
/// returned is on disk, whatever happens to the process or the machine.
fn prepare(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Sqlite { step: "open", source };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    let version: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if version != 0 && version != FORMAT {
        return Err(StoreError::Format(version));
    }
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA secure_delete = ON;
             CREATE TABLE IF NOT EXISTS sealed (
                 kind TEXT NOT NULL,
                 name TEXT NOT NULL,
                 value BLOB NOT NULL,
                 PRIMARY KEY (kind, name)
             ) WITHOUT ROWID;
             PRAGMA user_version = {FORMAT};"
        ))
        .map_err(failed)?;
    Ok(connection)
}
