//! The time of a verification. It always comes from the caller.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_cert::der::DateTime;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Timestamp(pub u64);

/// The text is not a time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not an RFC 3339 time between 1970 and 9999: write it as 2026-11-24T12:30:00Z or \
     2026-11-24T12:30:00+01:00"
)]
pub struct TimeError {
    text: String,
}

impl Timestamp {
    /// The machine's clock.
    #[must_use]
    pub fn now() -> Self {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(elapsed.as_secs())
    }

    /// Reads RFC 3339 (section 5.6): full date and time, optional fraction (dropped), `Z` or an
    /// offset. No other form, no surrounding blanks. A leap second counts as the second before it.
    ///
    /// # Errors
    /// The text is anything else.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        parse(text).map(Timestamp).ok_or_else(|| TimeError { text: text.to_owned() })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_unix_duration(Duration::from_secs(self.0)) {
            Ok(time) => time.fmt(formatter),
            Err(_) => write!(formatter, "{} s after 1970", self.0),
        }
    }
}

/// chrono takes a blank for the `T` as well, and a minus sign that is not ASCII.
fn parse(text: &str) -> Option<u64> {
    if !text.is_ascii() || !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
        return None;
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(time.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rfc_3339_allows() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-22T00:00:00Z", 1_795_305_600),
            ("2026-11-22t00:00:00z", 1_795_305_600),
            ("2026-11-22T01:30:00+01:30", 1_795_305_600),
            ("2026-11-21T22:00:00.999999-02:00", 1_795_305_600),
            ("2016-12-31T23:59:60Z", 1_483_228_799),
        ] {
            assert_eq!(Timestamp::parse(text), Ok(Timestamp(seconds)), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "now",
            "1795305600",
            "2026-11-22",
            "2026-11-22T00:00:00",
            "2026-11-22 00:00:00Z",
            "2026-11-22T00:00:00Z ",
            " 2026-11-22T00:00:00Z",
            "2026-11-22T00:00:00.Z",
            "2026-11-22T00:00Z",
            "2026-13-22T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T00:00:61Z",
            "2026-11-22T00:00:00+0100",
            "2026-11-22T00:00:00+24:00",
            "2026-11-22T00:00:00+01:60",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "+026-11-22T00:00:00Z",
            "２026-11-22T00:00:00Z",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }
}
