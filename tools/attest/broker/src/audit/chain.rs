//! Reading a log back, and finding what was done to it.

use std::io::{self, BufRead};

use ring::digest::{SHA384, digest};

use super::{AuditKey, Event, Head, Line, MAX_LINE, read_line};
use crate::seal::hex;

/// What stands before a line's MAC and its hash, and after them.
const BEFORE_MAC: &[u8] = b",\"mac\":\"";
const AFTER_MAC: &[u8] = b"\"";
const BEFORE_HASH: &[u8] = b",\"hash\":\"";
const AFTER_HASH: &[u8] = b"\"}\n";
/// Of a hash and of a MAC.
const DIGITS: usize = 96;

/// A log that is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The file cannot be read.
    #[error("could not read on after record {after}")]
    Read {
        /// The last record before.
        after: u64,
        /// Why.
        source: io::Error,
    },
    /// A line is no record.
    #[error("line {line} is no record: {why}")]
    Malformed {
        /// Counted from one.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A line's bytes do not have the line's hash.
    #[error("record {0} was changed: its bytes do not have its hash")]
    Changed(u64),
    /// A record has not the MAC of the store's key.
    #[error("record {0} was written by no broker of this store: its \"mac\" is not the store's")]
    Forged(u64),
    /// A record is not where its number says.
    #[error(
        "record {found} stands in the place of record {expected}: records were removed, added or moved"
    )]
    Order {
        /// The number that it has.
        found: u64,
        /// The number that it should have.
        expected: u64,
    },
    /// A record does not continue the one before it.
    #[error(
        "record {0} does not follow the one before it: its \"previous\" is another record's hash"
    )]
    Broken(u64),
    /// The end is missing.
    #[error("the log ends with record {found}, it had {expected}: records are missing at the end")]
    Truncated {
        /// How many there are.
        found: u64,
        /// How many there were.
        expected: u64,
    },
    /// The log is whole, but another one.
    #[error(
        "record {records} has the hash {found}, not {expected}: this is another log, or all of it was rewritten"
    )]
    OtherHead {
        /// Which record.
        records: u64,
        /// The hash that it has.
        found: String,
        /// The hash that it should have.
        expected: String,
    },
    /// The hash that was given is no record's.
    #[error("no record has the hash {0}: records are missing at the end, or this is another log")]
    NoSuchHead(String),
    /// Records that nobody noted.
    #[error("the log has {found} records, but only {known} are known: others were added")]
    Unknown {
        /// How many there are.
        found: u64,
        /// How many are known.
        known: u64,
    },
}

/// What a log says, all in all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Where it ends.
    pub head: Head,
    /// How many records are releases that were answered.
    pub releases: u64,
    /// How many records are releases or refusals that the broker did not come to answer.
    pub unanswered: u64,
    /// How many records are refusals that were answered.
    pub refusals: u64,
    /// How many answered releases rest on a TEST root.
    pub test_releases: u64,
    /// The length of all whole lines, in bytes.
    pub length: u64,
    /// The length of an unfinished last line, in bytes. A broker that was stopped while it wrote
    /// leaves one; what it was about had not been answered.
    pub partial: u64,
}

/// Reads a log from its beginning and checks every link; with a `key` also that a broker that has it
/// wrote every line. With an `anchor`, its record must be there
/// with its hash; an anchor whose `records` is zero and whose hash is not zeros is searched for by its
/// hash alone.
///
/// # Errors
/// See [`ChainError`]; the first thing that is wrong.
pub fn verify(
    mut input: impl BufRead,
    anchor: Option<&Head>,
    key: Option<&AuditKey>,
) -> Result<Summary, ChainError> {
    let mut summary = Summary::default();
    let mut before = None;
    let mut line = Vec::new();
    let none = Head::default();
    let mut found = anchor.is_none_or(|anchor| *anchor == none);
    loop {
        let after = summary.head.records;
        let length = read_line(&mut input, &mut line)
            .map_err(|source| ChainError::Read { after, source })?;
        if length == 0 {
            break;
        }
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        if line.last() != Some(&b'\n') && length < MAX_LINE {
            check_partial(&line, after.saturating_add(1))?;
            summary.partial = bytes;
            break;
        }
        let record = check(&line, &summary.head, key)?;
        summary.length = summary.length.saturating_add(bytes);
        let kind = (record.event, record.test);
        if record.event == Event::Unanswered {
            let unanswered = before.filter(|(event, _)| *event != Event::Unanswered);
            let kind = unanswered.ok_or_else(|| ChainError::Malformed {
                line: record.head.records,
                why: "no record before it can be unanswered".into(),
            })?;
            summary.count(kind, u64::wrapping_sub);
            summary.unanswered += 1;
        } else {
            summary.count(kind, u64::wrapping_add);
        }
        before = Some(kind);
        summary.head = record.head;
        if let Some(anchor) = anchor.filter(|_| !found) {
            found = is_anchor(anchor, &summary.head)?;
        }
    }
    match anchor {
        Some(anchor) if !found && anchor.records == 0 => {
            Err(ChainError::NoSuchHead(anchor.hash.clone()))
        }
        Some(anchor) if !found => {
            Err(ChainError::Truncated { found: summary.head.records, expected: anchor.records })
        }
        _ => Ok(summary),
    }
}

impl Summary {
    /// Adds a record of this kind to those of its kind, or takes one that was added away.
    fn count(&mut self, (event, test): (Event, bool), change: fn(u64, u64) -> u64) {
        match event {
            Event::Release => {
                self.releases = change(self.releases, 1);
                self.test_releases = change(self.test_releases, u64::from(test));
            }
            Event::Refusal => self.refusals = change(self.refusals, 1),
            Event::Unanswered => {}
        }
    }
}

/// Whether this is the record that the anchor names.
fn is_anchor(anchor: &Head, head: &Head) -> Result<bool, ChainError> {
    let same = anchor.hash == head.hash;
    if anchor.records == head.records && !same {
        return Err(ChainError::OtherHead {
            records: head.records,
            found: head.hash.clone(),
            expected: anchor.hash.clone(),
        });
    }
    Ok(same && (anchor.records == 0 || anchor.records == head.records))
}

struct Checked {
    head: Head,
    event: Event,
    test: bool,
}

/// Checks one line against where the log was before it.
fn check(line: &[u8], before: &Head, key: Option<&AuditKey>) -> Result<Checked, ChainError> {
    let expected = before.records.saturating_add(1);
    let malformed = |why: &str| ChainError::Malformed { line: expected, why: why.to_owned() };
    let Parts { body, mac, hashed, hash } = split(line).ok_or_else(|| {
        malformed(
            "it does not end with a MAC and a hash of 96 digits each, or is longer than any record",
        )
    })?;
    let json = [body, b"}"].concat();
    let record: Line =
        serde_json::from_slice(&json).map_err(|error| malformed(&error.to_string()))?;
    if hex(digest(&SHA384, hashed).as_ref()).as_bytes() != hash {
        return Err(ChainError::Changed(record.sequence));
    }
    if record.sequence != expected {
        return Err(ChainError::Order { found: record.sequence, expected });
    }
    if record.previous != before.hash {
        return Err(ChainError::Broken(expected));
    }
    if key.is_some_and(|key| key.mac(body).as_bytes() != mac) {
        return Err(ChainError::Forged(expected));
    }
    Ok(Checked {
        head: Head { records: expected, hash: String::from_utf8_lossy(hash).into_owned() },
        event: record.record.event,
        test: record.record.trust.as_deref() == Some("TEST"),
    })
}

/// That an unfinished line is the beginning of the next record, not some other file.
fn check_partial(line: &[u8], expected: u64) -> Result<(), ChainError> {
    let begin = format!("{{\"sequence\":{expected},");
    let common = line.len().min(begin.len());
    if line[..common] == begin.as_bytes()[..common] {
        return Ok(());
    }
    let why = "it is not the beginning of the next record".to_owned();
    Err(ChainError::Malformed { line: expected, why })
}

/// A line's parts.
struct Parts<'a> {
    /// Up to and without the MAC.
    body: &'a [u8],
    mac: &'a [u8],
    /// Up to and without the hash.
    hashed: &'a [u8],
    hash: &'a [u8],
}

fn split(line: &[u8]) -> Option<Parts<'_>> {
    let digits = |text: &'_ [u8]| text.len().checked_sub(DIGITS);
    let line = line.strip_suffix(AFTER_HASH)?;
    let (rest, hash) = line.split_at_checked(digits(line)?)?;
    let hashed = rest.strip_suffix(BEFORE_HASH)?;
    let rest = hashed.strip_suffix(AFTER_MAC)?;
    let (rest, mac) = rest.split_at_checked(digits(rest)?)?;
    Some(Parts { body: rest.strip_suffix(BEFORE_MAC)?, mac, hashed, hash })
}
