//! Processor products, and the layout of TCB_VERSION that depends on them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A product line with its own root key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004 (with Bergamo and Siena).
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl fmt::Display for Product {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl Product {
    /// From a name as certificates have it: the product, or the product, `-` and a stepping.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name.split_once('-').map_or(name, |(product, _)| product) {
            "Milan" => Some(Product::Milan),
            "Genoa" => Some(Product::Genoa),
            "Turin" => Some(Product::Turin),
            _ => None,
        }
    }

    /// From the family and model of CPUID leaf 1, as in reports from version 3.
    pub(crate) fn from_cpuid([family, model, _stepping]: [u8; 3]) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Product::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Product::Genoa),
            (0x1a, 0x00..=0x1f) => Some(Product::Turin),
            _ => None,
        }
    }

    /// How many bytes of CHIP_ID the product uses.
    pub(crate) fn chip_id_len(self) -> usize {
        match self {
            Product::Milan | Product::Genoa => 64,
            Product::Turin => 8,
        }
    }
}

/// TCB_VERSION by component, each a security version number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Tcb {
    /// Boot loader.
    pub bl: u8,
    /// Trusted execution environment.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub ucode: u8,
    /// FMC; Turin only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
}

impl Tcb {
    /// From the eight bytes in a report.
    pub(crate) fn from_bytes(bytes: [u8; 8], product: Product) -> Self {
        let [b0, b1, b2, b3, _, _, b6, ucode] = bytes;
        match product {
            Product::Milan | Product::Genoa => Tcb { bl: b0, tee: b1, snp: b6, ucode, fmc: None },
            Product::Turin => Tcb { fmc: Some(b0), bl: b1, tee: b2, snp: b3, ucode },
        }
    }

    fn components(self) -> [(&'static str, Option<u8>); 5] {
        [
            ("bl", Some(self.bl)),
            ("tee", Some(self.tee)),
            ("snp", Some(self.snp)),
            ("ucode", Some(self.ucode)),
            ("fmc", self.fmc),
        ]
    }

    /// The first component that is above its counterpart.
    pub(crate) fn first_above(self, other: Tcb) -> Option<&'static str> {
        let above = |((name, mine), (_, theirs))| (mine > theirs).then_some(name);
        self.components().into_iter().zip(other.components()).find_map(above)
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.components() {
            if let Some(value) = value {
                write!(formatter, "{separator}{name} {value}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
