//! The audit log: one line of JSON a release or refusal, each chained to the one before.
//!
//! A line is `{"sequence":N, ..., "previous":"HASH","hash":"HASH"}`. `hash` is SHA-384 over the line's
//! bytes up to and without `,"hash"`; `previous` is the hash of the line before, zeros in the first.
//! So a changed, inserted, missing or moved line breaks the chain at its place. That lines are missing
//! at the end is seen by who knows the last hash: the store keeps it, and [`verify`] takes it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA384, digest};
use serde::{Deserialize, Serialize};

use crate::seal::hex;

mod chain;

pub use chain::{ChainError, Summary, verify};

/// The longest line that is read, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// Where a log ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// How many records there are.
    pub records: u64,
    /// The last record's hash, 96 hexadecimal digits; zeros when there is none.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Head { records: 0, hash: "0".repeat(96) }
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A secret was given out.
    Release,
    /// Evidence or a request for a secret was refused.
    Refusal,
}

/// One record. What does not apply is null.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339.
    pub time: String,
    /// What happened.
    pub event: Event,
    /// Who asked: `tcp:IP`, `vsock:CID` or `unix:PATH`.
    pub peer: String,
    /// The secret that was asked for; null when it had not come to that.
    pub secret: Option<String>,
    /// The nonce that the evidence is bound to.
    pub nonce: Option<String>,
    /// SHA-384 of the report or quote.
    pub evidence: Option<String>,
    /// SHA-384 of the policy's text.
    pub policy: Option<String>,
    /// `accept`, `reject` or `no-collateral`; null when it was not judged.
    pub verdict: Option<String>,
    /// The names of the checks that failed or were not done.
    pub failing: Vec<String>,
    /// Whose root the evidence rests on; `TEST` proves nothing.
    pub trust: Option<String>,
    /// In words.
    pub reason: String,
}

/// A record in its place.
#[derive(Serialize, Deserialize)]
struct Line {
    sequence: u64,
    #[serde(flatten)]
    record: Record,
    previous: String,
}

/// A log that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened, read or written.
    #[error("could not {step} the audit log {}", .path.display())]
    File {
        /// What was attempted.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another broker writes to it.
    #[error("the audit log {} is in use by another broker", .0.display())]
    InUse(PathBuf),
    /// What is there is not what was written.
    #[error("the audit log {} was changed", .path.display())]
    Chain {
        /// Which file.
        path: PathBuf,
        /// How.
        source: ChainError,
    },
    /// An earlier write failed half way.
    #[error("an earlier record of the audit log could not be written; restart the broker")]
    Broken,
}

/// The log, open for appending. Only one process can have it.
pub struct AuditLog {
    path: PathBuf,
    file: File,
    head: Head,
    broken: bool,
}

impl AuditLog {
    /// Opens the log at `path`; makes an empty one if there is none. `anchor` is where it ended when
    /// last heard of. One record more than that may be there, and a part of a line: the broker
    /// stopped between writing and noting. The part is taken away.
    ///
    /// # Errors
    /// The file cannot be opened, is in use, or is not what was written.
    pub fn open(path: &Path, anchor: &Head) -> Result<Self, AuditError> {
        let failed = |step| move |source| AuditError::File { step, path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(failed("open"))?;
        if file.try_lock().is_err() {
            return Err(AuditError::InUse(path.to_owned()));
        }
        let chain = |source| AuditError::Chain { path: path.to_owned(), source };
        let summary = verify(BufReader::new(&file), Some(anchor)).map_err(chain)?;
        if summary.head.records > anchor.records.saturating_add(1) {
            return Err(chain(ChainError::Unknown {
                found: summary.head.records,
                known: anchor.records,
            }));
        }
        if summary.partial > 0 {
            file.set_len(summary.length).map_err(failed("repair"))?;
            file.seek(SeekFrom::End(0)).map_err(failed("repair"))?;
        }
        file.sync_all().map_err(failed("synchronize"))?;
        Ok(AuditLog { path: path.to_owned(), file, head: summary.head, broken: false })
    }

    /// Where the log ends.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Appends a record. When this returns, it is on disk.
    ///
    /// # Errors
    /// It is not certain that the record is on disk.
    pub fn append(&mut self, record: Record) -> Result<&Head, AuditError> {
        if self.broken {
            return Err(AuditError::Broken);
        }
        let failed = |step, source| AuditError::File { step, path: self.path.clone(), source };
        let sequence = self.head.records.saturating_add(1);
        let line = Line { sequence, record, previous: self.head.hash.clone() };
        let mut text = serde_json::to_string(&line)
            .map_err(|error| failed("encode a record of", error.into()))?;
        // The closing brace comes after the hash.
        text.pop();
        let hash = hex(digest(&SHA384, text.as_bytes()).as_ref());
        text.push_str(&format!(",\"hash\":\"{hash}\"}}\n"));
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            self.broken = true;
            return Err(failed("write", source));
        }
        self.head = Head { records: sequence, hash };
        Ok(&self.head)
    }
}

/// A line of at most [`MAX_LINE`] bytes with its end, or less at the input's end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    io::Read::take(&mut *input, limit).read_until(b'\n', line)
}
