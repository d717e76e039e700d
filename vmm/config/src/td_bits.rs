//! TD attributes and XFAM by the names of their bits (Intel TDX module ABI, "ATTRIBUTES" and "XFAM").

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::Tdx;
use crate::reference::Shape;

/// A name, its bits, and what is wrong with asking for them, if anything.
type Bit = (&'static str, u64, Option<&'static str>);

const ATTRIBUTES: &[Bit] = &[
    ("DEBUG", 1, Some("say debug = true")),
    ("LASS", 1 << 27, None),
    ("SEPT_VE_DISABLE", 1 << 28, Some("it is always set")),
    ("MIGRATABLE", 1 << 29, Some("Casemate migrates no guests")),
    ("PKS", 1 << 30, None),
    ("KL", 1 << 31, None),
    ("PERFMON", 1 << 63, None),
];

const AVX: u64 = 1 << 2;
const XFAM: &[Bit] = &[
    ("X87", 1 << 0, Some("it is always set")),
    ("SSE", 1 << 1, Some("it is always set")),
    ("AVX", AVX, None),
    ("AVX512", 0b111 << 5, None),
    ("PT", 1 << 8, None),
    ("PK", 1 << 9, None),
    ("CET", 0b11 << 11, None),
    ("UINTR", 1 << 14, None),
    ("LBR", 1 << 15, None),
    ("AMX", 0b11 << 17, None),
];
/// What makes no sense without AVX.
const NEED_AVX: u64 = 0b111 << 5 | 0b11 << 17;

/// TD attributes beside those that follow from other keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TdAttributes(pub u64);

/// Extended features of a TD beside x87 and SSE: bits of XCR0 and IA32_XSS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xfam(pub u64);

fn parse(what: &str, names: &[String], known: &[Bit]) -> Result<u64, String> {
    let mut all = 0;
    for name in names {
        let Some((_, bits, refusal)) = known.iter().find(|(known, ..)| known == name) else {
            let list: Vec<_> =
                known.iter().filter(|bit| bit.2.is_none()).map(|bit| bit.0).collect();
            return Err(format!("\"{name}\" is no {what}; there are {}", list.join(", ")));
        };
        if let Some(why) = refusal {
            return Err(format!("leave out \"{name}\": {why}"));
        }
        all |= bits;
    }
    Ok(all)
}

fn names(bits: u64, known: &'static [Bit]) -> impl Iterator<Item = &'static str> {
    known.iter().filter(move |(_, bit, _)| bits & bit == *bit).map(|(name, ..)| *name)
}

fn text(bits: u64, known: &'static [Bit]) -> String {
    format!(
        "[{}]",
        names(bits, known).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    )
}

impl Tdx {
    /// The names of all attributes of the TD, and of all its extended features.
    #[must_use]
    pub fn bit_names(&self) -> [Vec<&'static str>; 2] {
        [names(self.attributes(), ATTRIBUTES).collect(), names(self.xfam(), XFAM).collect()]
    }
}

impl<'de> Deserialize<'de> for TdAttributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::deserialize(deserializer)?;
        parse("TD attribute", &names, ATTRIBUTES).map(Self).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Xfam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::deserialize(deserializer)?;
        let bits = parse("extended feature", &names, XFAM).map_err(de::Error::custom)?;
        if bits & NEED_AVX != 0 && bits & AVX == 0 {
            return Err(de::Error::custom("AVX512 and AMX need \"AVX\" as well"));
        }
        Ok(Self(bits))
    }
}

impl fmt::Display for TdAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0, ATTRIBUTES))
    }
}

impl fmt::Display for Xfam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0, XFAM))
    }
}

macro_rules! shape {
    ($type:ty, $example:literal) => {
        impl Shape for $type {
            fn shape() -> String {
                concat!("names, like `", $example, "`").into()
            }

            fn shown(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    };
}

shape!(TdAttributes, "[\"PKS\"]");
shape!(Xfam, "[\"AVX\", \"AVX512\"]");

#[cfg(test)]
mod tests {
    use super::*;

    fn tdx(text: &str) -> Result<Tdx, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn names_are_bits() {
        let tdx =
            tdx("xfam = [\"AVX\", \"AMX\", \"CET\"]\nattributes = [\"PKS\", \"PERFMON\"]").unwrap();
        assert_eq!(tdx.xfam(), 0b11 << 17 | 0b11 << 11 | 0b111);
        assert_eq!(tdx.attributes(), 1 << 63 | 1 << 30 | 1 << 28);
        assert_eq!(tdx.xfam.to_string(), "[\"AVX\", \"CET\", \"AMX\"]");
        assert_eq!((Tdx::default().xfam(), Tdx::default().attributes()), (3, 1 << 28));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, problem) in [
            ("xfam = [\"AVX512\"]", "AVX512 and AMX need \"AVX\" as well"),
            ("xfam = [\"SSE\"]", "leave out \"SSE\": it is always set"),
            ("xfam = [\"avx\"]", "\"avx\" is no extended feature; there are AVX, AVX512, PT, PK"),
            ("attributes = [\"DEBUG\"]", "leave out \"DEBUG\": say debug = true"),
            ("attributes = [\"MIGRATABLE\"]", "leave out \"MIGRATABLE\": Casemate migrates no"),
            ("attributes = [\"X\"]", "\"X\" is no TD attribute; there are LASS, PKS, KL, PERFMON"),
        ] {
            let error = tdx(text).unwrap_err();
            assert!(error.starts_with(problem), "{text}: {error}");
        }
    }
}
