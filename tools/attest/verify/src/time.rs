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

fn parse(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let literal = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|b| allowed.contains(b));
    let separated = literal(4, b"-")
        && literal(7, b"-")
        && literal(10, b"Tt")
        && literal(13, b":")
        && literal(16, b":");
    if !separated {
        return None;
    }
    let year = number(bytes.get(0..4)?)?;
    let [month, day, hour, minute, second] =
        [5, 8, 11, 14, 17].map(|at| bytes.get(at..at + 2).and_then(number));
    let second = match second? {
        60 => 59,
        second => second,
    };
    let date = DateTime::new(
        year,
        u8::try_from(month?).ok()?,
        u8::try_from(day?).ok()?,
        u8::try_from(hour?).ok()?,
        u8::try_from(minute?).ok()?,
        u8::try_from(second).ok()?,
    )
    .ok()?;
    let offset = offset(fraction_dropped(bytes.get(19..)?)?)?;
    let local = i64::try_from(date.unix_duration().as_secs()).ok()?;
    u64::try_from(local.checked_sub(offset)?).ok()
}

/// What follows the optional fraction.
fn fraction_dropped(rest: &[u8]) -> Option<&[u8]> {
    let Some(fraction) = rest.strip_prefix(b".") else {
        return Some(rest);
    };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 { None } else { fraction.get(digits..) }
}

/// Seconds east of UTC.
fn offset(text: &[u8]) -> Option<i64> {
    match text {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let hours = number(&[*h1, *h2]).filter(|hours| *hours < 24)?;
            let minutes = number(&[*m1, *m2]).filter(|minutes| *minutes < 60)?;
            let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

/// At most four decimal digits.
fn number(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0_u16, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        value.checked_mul(10)?.checked_add(u16::from(digit))
    })
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
