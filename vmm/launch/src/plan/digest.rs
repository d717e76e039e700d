//! SHA-384 values, the currency of both platforms' measurements.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A SHA-384 value, in text 96 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest384(pub [u8; 48]);

/// A text that is no [`Digest384`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 48 bytes as 96 hexadecimal digits, found {found:?}")]
pub struct DigestError {
    found: String,
}

impl Digest384 {
    /// Start of every chain of digests.
    pub const ZERO: Self = Self([0; 48]);

    /// SHA-384 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_ring(&ring::digest::digest(&ring::digest::SHA384, bytes))
    }

    /// Result of a context of [`ring::digest::SHA384`].
    pub(crate) fn from_ring(digest: &ring::digest::Digest) -> Self {
        let mut value = [0; 48];
        value.copy_from_slice(digest.as_ref());
        Self(value)
    }
}

impl fmt::Display for Digest384 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest384 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest384 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError { found: text.to_owned() };
        let mut value = [0; 48];
        if text.len() != 96 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(error());
        }
        for (byte, at) in value.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(value))
    }
}

impl Serialize for Digest384 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest384 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_96_hexadecimal_digits() {
        // FIPS 180-4 example: SHA-384 of "abc".
        let abc = "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                   8086072ba1e7cc2358baeca134c825a7";
        assert_eq!(Digest384::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse(), Ok(Digest384::of(b"abc")));
        assert_eq!(abc.to_uppercase().parse(), Ok(Digest384::of(b"abc")));
        for bad in ["", "cb", &"+0".repeat(48), &"ä".repeat(48)] {
            assert!(bad.parse::<Digest384>().is_err(), "{bad}");
        }
    }
}
