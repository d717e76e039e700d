//! Reading a log back, and finding what was done to it.

use std::io::{self, BufRead};

use ring::digest::{SHA384, digest};

use super::{Event, Head, Line, MAX_LINE, read_line};
use crate::seal::hex;

/// What stands between a line's hashed part and its hash, and after it.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";
const AFTER_HASH: &[u8] = b"\"}\n";
const HASH_DIGITS: usize = 96;

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
    /// How many records are releases.
    pub releases: u64,
    /// How many records are refusals.
    pub refusals: u64,
    /// How many releases rest on a TEST root.
    pub test_releases: u64,
    /// The length of all whole lines, in bytes.
    pub length: u64,
    /// The length of an unfinished last line, in bytes. A broker that was stopped while it wrote
    /// leaves one; what it was about had not been answered.
    pub partial: u64,
}

/// Reads a log from its beginning and checks every link. With an `anchor`, its record must be there
/// with its hash; an anchor whose `records` is zero and whose hash is not zeros is searched for by its
/// hash alone.
///
/// # Errors
/// See [`ChainError`]; the first thing that is wrong.
pub fn verify(mut input: impl BufRead, anchor: Option<&Head>) -> Result<Summary, ChainError> {
    let mut summary = Summary::default();
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
        let record = check(&line, &summary.head)?;
        summary.length = summary.length.saturating_add(bytes);
        summary.head = record.head;
        match (record.event, record.test) {
            (Event::Release, test) => {
                summary.releases += 1;
                summary.test_releases += u64::from(test);
            }
            (Event::Refusal, _) => summary.refusals += 1,
        }
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
fn check(line: &[u8], before: &Head) -> Result<Checked, ChainError> {
    let expected = before.records.saturating_add(1);
    let malformed = |why: &str| ChainError::Malformed { line: expected, why: why.to_owned() };
    let (body, hash) = split(line).ok_or_else(|| {
        malformed("it does not end with a hash of 96 digits, or is longer than any record")
    })?;
    let json = [body, b"}"].concat();
    let record: Line =
        serde_json::from_slice(&json).map_err(|error| malformed(&error.to_string()))?;
    if hex(digest(&SHA384, body).as_ref()).as_bytes() != hash {
        return Err(ChainError::Changed(record.sequence));
    }
    if record.sequence != expected {
        return Err(ChainError::Order { found: record.sequence, expected });
    }
    if record.previous != before.hash {
        return Err(ChainError::Broken(expected));
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

/// A line's hashed part, and its hash.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(AFTER_HASH)?;
    let (rest, hash) = line.split_at_checked(line.len().checked_sub(HASH_DIGITS)?)?;
    Some((rest.strip_suffix(BEFORE_HASH)?, hash))
}
