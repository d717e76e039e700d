//! Byte strings that policies and claims spell in hexadecimal.

use std::fmt::{self, Write as _};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `N` bytes, in text `2 N` hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> Hex<N> {
    /// Reads exactly `2 N` hexadecimal digits of either case.
    ///
    /// # Errors
    /// Says what was found when the text is anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.as_bytes();
        if digits.len() != 2 * N {
            return Err(format!(
                "expected {N} bytes as {} hexadecimal digits, found {} characters",
                2 * N,
                digits.len()
            ));
        }
        let mut bytes = [0; N];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let mut value = 0;
            for digit in pair {
                let Some(digit) = char::from(*digit).to_digit(16) else {
                    return Err(format!("\"{text}\" is not hexadecimal"));
                };
                value = value * 16 + digit;
            }
            *byte = u8::try_from(value).unwrap_or(u8::MAX);
        }
        Ok(Hex(bytes))
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&text(&self.0))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(&self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Hex::parse(&text).map_err(D::Error::custom)
    }
}

/// Bytes of any number, spelled in hexadecimal digits of either case.
pub(crate) fn bytes_of(text: &str) -> Result<Vec<u8>, String> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty()).ok_or_else(|| "expected pairs of hexadecimal digits".into())
}

/// Lower-case hexadecimal.
pub(crate) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A value or a list of values; an empty list allows nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<const N: usize> OneOrMany<Hex<N>> {
    /// Whether `found` is one of the values; either way in words.
    pub(crate) fn check(&self, what: &str, found: &[u8; N]) -> Result<String, String> {
        let found = Hex(*found);
        match self.0.as_slice() {
            list if list.contains(&found) => Ok(format!("{what} {found} is listed")),
            [] => Err(format!("{what} is {found}; the policy's list is empty and allows nothing")),
            [one] => Err(format!("{what} is {found}, the policy wants {one}")),
            list => Err(format!("{what} {found} is none of the policy's {}", list.len())),
        }
    }
}

impl<'de, const N: usize> Deserialize<'de> for OneOrMany<Hex<N>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const N: usize>;
        impl<'de, const N: usize> serde::de::Visitor<'de> for Visitor<N> {
            type Value = OneOrMany<Hex<N>>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{N} bytes in hexadecimal, or a list of such")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![Hex::parse(text).map_err(E::custom)?]))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A value of 32, 48 or 64 bytes, or a list of such; an empty list allows nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Values(pub Vec<Vec<u8>>);

impl Values {
    /// Whether `found` is one of the values; either way in words.
    pub(crate) fn check(&self, what: &str, found: &[u8]) -> Result<String, String> {
        let shown = text(found);
        if self.0.iter().any(|value| value == found) {
            Ok(format!("{what} {shown} is listed"))
        } else if self.0.is_empty() {
            Err(format!("{what} is {shown}; the policy's list is empty and allows nothing"))
        } else {
            Err(format!("{what} is {shown}, which the policy does not list"))
        }
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Texts {
            One(String),
            Many(Vec<String>),
        }
        let texts = match Texts::deserialize(deserializer)? {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        let mut values = Vec::new();
        for text in texts {
            let value = bytes_of(&text).map_err(D::Error::custom)?;
            if ![32, 48, 64].contains(&value.len()) {
                let length = value.len();
                return Err(D::Error::custom(format!("{length} bytes are not 32, 48 or 64")));
            }
            values.push(value);
        }
        Ok(Values(values))
    }
}
