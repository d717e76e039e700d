//! The CPU signature that a guest's boot processor starts with.

use std::fmt;
use std::str::FromStr;

/// CPUID leaf 1 EAX (AMD64 APM volume 3, appendix E.3.2) of the CPU *model that the guest is shown*,
/// which need not be the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuSignature(pub u32);

/// A name that is no CPU model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown vCPU type {name:?}; known are {known}, each also with a version such as EPYC-Milan-v2. \
     For any other, give the signature",
    known = known_names()
)]
pub struct CpuSignatureError {
    name: String,
}

/// QEMU's names, each with family, model and stepping. A model's versions do not change them.
const MODELS: [(&str, [u32; 3]); 6] = [
    ("EPYC", [23, 1, 2]),
    ("EPYC-IBPB", [23, 1, 2]),
    ("EPYC-Rome", [23, 49, 0]),
    ("EPYC-Milan", [25, 1, 1]),
    ("EPYC-Genoa", [25, 17, 0]),
    ("EPYC-Turin", [26, 0, 0]),
];

impl CpuSignature {
    /// The signature of a family, model and stepping; bits that do not fit their field are lost.
    #[must_use]
    pub const fn new(family: u32, model: u32, stepping: u32) -> Self {
        // Families above 15 are 15 in the low field, the rest in the extended one.
        let (low, extended) = if family > 15 { (15, family - 15) } else { (family, 0) };
        Self(
            (extended & 0xff) << 20
                | (model >> 4 & 0xf) << 16
                | low << 8
                | (model & 0xf) << 4
                | stepping & 0xf,
        )
    }

    /// The names of [`FromStr`] without their versions, and their signatures.
    pub fn known() -> impl Iterator<Item = (&'static str, Self)> {
        MODELS
            .into_iter()
            .map(|(name, [family, model, stepping])| (name, Self::new(family, model, stepping)))
    }
}

fn known_names() -> String {
    MODELS.map(|(name, _)| name).join(", ")
}

impl fmt::Display for CpuSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl FromStr for CpuSignature {
    type Err = CpuSignatureError;

    /// Reads one of QEMU's model names, such as `EPYC-Milan` or `EPYC-v4`.
    fn from_str(name: &str) -> Result<Self, CpuSignatureError> {
        let model = match name.rsplit_once("-v") {
            Some((model, version)) if version.parse::<u8>().is_ok() => model,
            _ => name,
        };
        let known = Self::known().find(|(known, _)| *known == model);
        known
            .map(|(_, signature)| signature)
            .ok_or_else(|| CpuSignatureError { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_models_with_or_without_a_version() {
        assert_eq!("EPYC-v4".parse(), Ok(CpuSignature(0x0080_0f12)));
        assert_eq!("EPYC-Rome".parse(), Ok(CpuSignature(0x0083_0f10)));
        assert_eq!("EPYC-Turin-v1".parse(), Ok(CpuSignature(0x00b0_0f00)));
        for name in ["", "epyc", "EPYC-v", "EPYC-Siena", "host", "EPYC-vMilan"] {
            let error = name.parse::<CpuSignature>().unwrap_err().to_string();
            assert!(error.contains("EPYC-Genoa"), "{error}");
        }
    }

    #[test]
    fn the_family_is_split_above_15() {
        assert_eq!(CpuSignature::new(6, 0, 0), CpuSignature(0x600));
        assert_eq!(CpuSignature::new(25, 1, 1).to_string(), "0x00a00f11");
    }
}
