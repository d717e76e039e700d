//! The audit log: one line of JSON a release or refusal, each chained to the one before.
//!
//! A line is `{"sequence":N, ..., "previous":"HASH","mac":"MAC","hash":"HASH"}`. `hash` is SHA-384 over the
//! line's bytes up to and without `,"hash"`; `previous` is the hash of the line before, zeros in the
//! first. So a changed, inserted, missing or moved line breaks the chain at its place. `mac` is
//! HMAC-SHA-384 over the line's bytes up to and without `,"mac"`, with a key that is derived from the
//! store's: nobody else can add a line. That lines are missing at the end is seen by who knows the last
//! hash: the store keeps it, and [`verify`] takes it.
//!
//! A record is written to the log, then noted in the store, then answered. A broker that is killed in
//! between leaves one record that the store does not know; it was not answered. The next broker says so
//! in a record of its own ([`Event::Unanswered`]).

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use casemate_foreign::{cut, one_line};
use ring::digest::{SHA384, digest};
use ring::hmac;
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
    /// The broker ended after it wrote the record before this one, and before it answered.
    Unanswered,
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
    /// The questions that the evidence answered, of `platform`, `firmware`, `system` and `fresh`.
    #[serde(default)]
    pub answered: Vec<String>,
    /// In words.
    pub reason: String,
}

/// Longest text of a field, and number of names in [`Record::failing`] and their length, in characters.
const MAX_FIELD: usize = 512;
const MAX_FAILING: usize = 64;
const MAX_NAME: usize = 64;
/// There are four questions.
const MAX_ANSWERED: usize = 4;

/// No record makes a line that [`verify`] refuses for its length. A character takes at most four bytes:
/// those that JSON escapes to more do not print, but for `"` and `\`, which take two.
const _: () =
    assert!((11 * MAX_FIELD + (MAX_FAILING + MAX_ANSWERED) * (MAX_NAME + 1)) * 4 + 1024 < MAX_LINE);

impl Record {
    /// The record without characters that do not print, and with its texts cut: peers choose some.
    #[must_use]
    pub(crate) fn bounded(self) -> Self {
        let text = |text: String| cut(&one_line(&text), MAX_FIELD).to_owned();
        let name = |name: String| cut(&one_line(&name), MAX_NAME).to_owned();
        Record {
            time: text(self.time),
            event: self.event,
            peer: text(self.peer),
            secret: self.secret.map(text),
            nonce: self.nonce.map(text),
            evidence: self.evidence.map(text),
            policy: self.policy.map(text),
            verdict: self.verdict.map(text),
            failing: self.failing.into_iter().take(MAX_FAILING).map(name).collect(),
            trust: self.trust.map(text),
            answered: self.answered.into_iter().take(MAX_ANSWERED).map(name).collect(),
            reason: text(self.reason),
        }
    }
}

/// A record in its place.
#[derive(Serialize, Deserialize)]
struct Line {
    sequence: u64,
    #[serde(flatten)]
    record: Record,
    previous: String,
}

/// The key that makes a line the broker's own.
pub struct AuditKey(hmac::Key);

impl AuditKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        AuditKey(hmac::Key::new(hmac::HMAC_SHA384, key))
    }

    fn mac(&self, body: &[u8]) -> String {
        hex(hmac::sign(&self.0, body).as_ref())
    }
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
    /// A record could neither be written nor be taken back: the log's state is unknown.
    #[error(
        "the audit log {} may have a record that was not answered; restart the broker",
        .0.display()
    )]
    Broken(PathBuf),
}

/// The log, open for appending. Only one process can have it.
pub struct AuditLog {
    path: PathBuf,
    file: File,
    key: AuditKey,
    head: Head,
    /// Length of all whole lines, in bytes.
    length: u64,
    broken: bool,
}

impl AuditLog {
    /// Opens the log at `path`; makes an empty one if there is none. `anchor` is where it ended when
    /// last heard of. One record of this `key` more than that may be there, and a part of a line: the
    /// broker stopped between writing and noting. The part is taken away.
    ///
    /// # Errors
    /// The file cannot be opened, is in use, or is not what was written.
    pub fn open(path: &Path, anchor: &Head, key: AuditKey) -> Result<Self, AuditError> {
        Self::open_ahead(path, anchor, key, 1)
    }

    /// [`AuditLog::open`] with up to `ahead` records that the anchor does not know.
    ///
    /// # Errors
    /// As of [`AuditLog::open`].
    pub(crate) fn open_ahead(
        path: &Path,
        anchor: &Head,
        key: AuditKey,
        ahead: u64,
    ) -> Result<Self, AuditError> {
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
        let summary = verify(BufReader::new(&file), Some(anchor), Some(&key)).map_err(chain)?;
        if summary.head.records > anchor.records.saturating_add(ahead) {
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
        let Summary { head, length, .. } = summary;
        Ok(AuditLog { path: path.to_owned(), file, key, head, length, broken: false })
    }

    /// Where the log ends.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Appends a record, its texts escaped and cut. When this returns, it is on disk.
    ///
    /// # Errors
    /// The record is not in the log, or the log is broken (see [`AuditLog::is_broken`]).
    pub fn append(&mut self, record: Record) -> Result<&Head, AuditError> {
        self.append_and(record, |_| Ok(()))
    }

    /// Appends a record and notes the log's new end elsewhere. When noting fails, the record is taken
    /// back: the log does not have what was not done.
    ///
    /// # Errors
    /// As of [`AuditLog::append`], or noting failed.
    pub(crate) fn append_and<E: From<AuditError>>(
        &mut self,
        record: Record,
        note: impl FnOnce(&Head) -> Result<(), E>,
    ) -> Result<&Head, E> {
        let (text, head) = self.line(record)?;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            self.take_back();
            return Err(self.failed("write", source).into());
        }
        if let Err(error) = note(&head) {
            self.take_back();
            return Err(error);
        }
        self.head = head;
        self.length = self.length.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        Ok(&self.head)
    }

    /// Whether a record could not be taken back. Nothing can be appended any more: the process has to
    /// end, and the next one reads what is there.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    #[cfg(test)]
    pub(crate) fn break_it(&mut self) {
        self.broken = true;
    }

    /// The next line, and the head with it.
    fn line(&self, record: Record) -> Result<(String, Head), AuditError> {
        if self.broken {
            return Err(AuditError::Broken(self.path.clone()));
        }
        let sequence = self.head.records.saturating_add(1);
        let line = Line { sequence, record: record.bounded(), previous: self.head.hash.clone() };
        let mut text = serde_json::to_string(&line)
            .map_err(|error| self.failed("encode a record of", error.into()))?;
        // The closing brace comes after the hash.
        text.pop();
        let mac = self.key.mac(text.as_bytes());
        text.push_str(&format!(",\"mac\":\"{mac}\""));
        let hash = hex(digest(&SHA384, text.as_bytes()).as_ref());
        text.push_str(&format!(",\"hash\":\"{hash}\"}}\n"));
        Ok((text, Head { records: sequence, hash }))
    }

    /// Cuts the file to the lines that count.
    fn take_back(&mut self) {
        let cut = self.file.set_len(self.length).and_then(|()| self.file.sync_data());
        self.broken = cut.is_err();
    }

    fn failed(&self, step: &'static str, source: io::Error) -> AuditError {
        AuditError::File { step, path: self.path.clone(), source }
    }
}

/// A line of at most [`MAX_LINE`] bytes with its end, or less at the input's end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    io::Read::take(&mut *input, limit).read_until(b'\n', line)
}
