//! TD attributes and XFAM by the names of their bits (Intel TDX module ABI, "ATTRIBUTES" and "XFAM").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use crate::Tdx;
use crate::keys::from_str;

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
const PK: u64 = 1 << 9;
const XFAM: &[Bit] = &[
    ("X87", 1 << 0, Some("it is always set")),
    ("SSE", 1 << 1, Some("it is always set")),
    ("AVX", AVX, None),
    ("AVX512", 0b111 << 5, None),
    ("PT", 1 << 8, None),
    ("PK", PK, None),
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

/// Extended features of a TD beside x87 and SSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xfam {
    /// These bits of XCR0 and IA32_XSS.
    Bits(u64),
    /// Those of [`Xfam::NAMED`] that the host offers.
    Auto,
}

impl Xfam {
    /// All bits that have a name.
    pub const NAMED: u64 = AVX | 0b111 << 5 | 1 << 8 | PK | 0b11 << 11 | 0b11 << 14 | 0b11 << 17;

    /// What `auto` means on a host that offers `offered`.
    #[must_use]
    pub const fn on_host(self, offered: u64) -> Self {
        match self {
            Self::Auto => Self::Bits(offered & Self::NAMED),
            bits @ Self::Bits(_) => bits,
        }
    }
}

/// Programs that are built for x86-64-v3 end at their first instruction of AVX without it. Every host
/// with TDX has both.
impl Default for Xfam {
    fn default() -> Self {
        Self::Bits(AVX | PK)
    }
}

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
    /// The names of all attributes of the TD, and of all its extended features; `None`: those that
    /// the host offers.
    #[must_use]
    pub fn bit_names(&self) -> (Vec<&'static str>, Option<Vec<&'static str>>) {
        let xfam = self.xfam().map(|xfam| names(xfam, XFAM).collect());
        (names(self.attributes(), ATTRIBUTES).collect(), xfam)
    }
}

impl TdAttributes {
    fn from_names(names: &[String]) -> Result<Self, String> {
        parse("TD attribute", names, ATTRIBUTES).map(Self)
    }
}

impl Xfam {
    fn from_names(names: &[String]) -> Result<Self, String> {
        let bits = parse("extended feature", names, XFAM)?;
        if bits & NEED_AVX != 0 && bits & AVX == 0 {
            return Err("AVX512 and AMX need \"AVX\" as well".into());
        }
        Ok(Self::Bits(bits))
    }
}

impl fmt::Display for TdAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0, ATTRIBUTES))
    }
}

impl fmt::Display for Xfam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => f.write_str(&text(*bits, XFAM)),
            Self::Auto => f.write_str("\"auto\""),
        }
    }
}

/// The names of a flag's value, joined by `+`.
fn joined_names(text: &str) -> Vec<String> {
    text.split('+').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl FromStr for TdAttributes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_names(&joined_names(text))
    }
}

impl FromStr for Xfam {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { Self::from_names(&joined_names(text)) }
    }
}

impl<'de> Deserialize<'de> for TdAttributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Self::from_names(&names).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Xfam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"auto\", or names of extended features in a list")]
        enum Choice {
            Word(String),
            Names(Vec<String>),
        }
        match Choice::deserialize(deserializer)? {
            Choice::Word(word) if word == "auto" => Ok(Self::Auto),
            Choice::Word(word) => {
                let problem = format!("\"{word}\" is neither \"auto\" nor a list of names");
                Err(de::Error::custom(problem))
            }
            Choice::Names(names) => Self::from_names(&names).map_err(de::Error::custom),
        }
    }
}

from_str!(TdAttributes, "NAME+NAME", "names, like `[\"PKS\"]`");
from_str!(Xfam, "NAME+NAME", "names, like `[\"AVX\", \"AVX512\"]` or `\"auto\"`");

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
        assert_eq!(tdx.xfam(), Some(0b11 << 17 | 0b11 << 11 | 0b111));
        assert_eq!(tdx.attributes(), 1 << 63 | 1 << 30 | 1 << 28);
        assert_eq!(tdx.xfam.to_string(), "[\"AVX\", \"CET\", \"AMX\"]");
        assert_eq!(Tdx::default().attributes(), 1 << 28);
    }

    /// AVX: RHEL 10 and others are built for x86-64-v3. PK: what KVM offers besides on every host.
    #[test]
    fn programs_for_x86_64_v3_run_by_default() {
        assert_eq!(Tdx::default().xfam(), Some(0x207));
        assert_eq!(Tdx::default().xfam.to_string(), "[\"AVX\", \"PK\"]");
        assert_eq!(tdx("xfam = []").unwrap().xfam(), Some(3));
        assert_eq!("".parse(), Ok(Xfam::Bits(0)));
        assert_eq!("AVX+PK".parse(), Ok(Xfam::default()));
    }

    #[test]
    fn auto_is_resolved_by_the_host() {
        let auto = tdx("xfam = \"auto\"").unwrap();
        assert_eq!((auto.xfam(), auto.bit_names().1), (None, None));
        let all = XFAM.iter().fold(0, |all, (_, bits, _)| all | bits);
        assert_eq!(Xfam::NAMED | 3, all);
        // Bit 10 has no name.
        assert_eq!(auto.xfam.on_host(1 << 10 | 0x2e7), Xfam::Bits(0x2e4));
        assert_eq!("auto".parse(), Ok(Xfam::Auto));
        assert_eq!(Xfam::Bits(4).on_host(u64::MAX), Xfam::Bits(4));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, problem) in [
            ("xfam = [\"AVX512\"]", "AVX512 and AMX need \"AVX\" as well"),
            ("xfam = \"all\"", "\"all\" is neither \"auto\" nor a list of names"),
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
