//! The CPU model that a guest is shown.

use std::fmt;

use casemate_launch::snp::CpuSignature;
use serde::{Deserialize, Deserializer, de};

use crate::reference::Shape;

/// A CPU model by its signature: QEMU's name for it, or CPUID leaf 1 EAX as a hexadecimal number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuType {
    text: String,
    /// CPUID leaf 1 EAX.
    pub signature: CpuSignature,
}

impl<'de> Deserialize<'de> for VcpuType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16));
        let signature = match number {
            Some(Ok(signature)) => CpuSignature(signature),
            Some(Err(_)) => {
                let problem = format!("\"{text}\" is not a number like \"0x00a00f11\"");
                return Err(de::Error::custom(problem));
            }
            None => text.parse().map_err(de::Error::custom)?,
        };
        Ok(Self { text, signature })
    }
}

impl fmt::Display for VcpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl Shape for VcpuType {
    fn shape() -> String {
        "CPU model, like `\"EPYC-Milan\"`".into()
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}
