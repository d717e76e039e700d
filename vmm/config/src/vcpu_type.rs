//! The CPU model that a guest is shown.

use std::fmt;
use std::str::FromStr;

use casemate_launch::rules::{CpuSignature, CpuSignatureError};
use serde::{Deserialize, Deserializer, de};

use crate::keys::from_str;

/// A CPU model by its signature: QEMU's name for it, CPUID leaf 1 EAX as a hexadecimal number, or
/// `host` for this machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuType {
    text: String,
    /// `None` for the host's.
    model: Option<CpuSignature>,
}

/// The name of this machine's CPU model.
const HOST: &str = "host";

impl VcpuType {
    /// CPUID leaf 1 EAX of the model; `None` for the host's on a machine that has no such leaf.
    #[must_use]
    pub fn signature(&self) -> Option<CpuSignature> {
        self.model.or_else(hosts_signature)
    }
}

/// The signature that QEMU takes from this machine with `-cpu host`.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::unnecessary_wraps, reason = "other machines have none")]
fn hosts_signature() -> Option<CpuSignature> {
    Some(CpuSignature(std::arch::x86_64::__cpuid(1).eax))
}

#[cfg(not(target_arch = "x86_64"))]
fn hosts_signature() -> Option<CpuSignature> {
    None
}

impl From<CpuSignature> for VcpuType {
    fn from(signature: CpuSignature) -> Self {
        Self { text: signature.to_string(), model: Some(signature) }
    }
}

/// Why a text is not a CPU model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VcpuTypeError {
    /// Digits after `0x` that are not a 32-bit number.
    #[error("\"{0}\" is not a number like \"0x00a00f11\"")]
    Number(String),
    /// An unknown name.
    #[error(transparent)]
    Name(#[from] CpuSignatureError),
}

impl FromStr for VcpuType {
    type Err = VcpuTypeError;

    fn from_str(text: &str) -> Result<Self, VcpuTypeError> {
        let number = text.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16));
        let model = match number {
            Some(Ok(signature)) => Some(CpuSignature(signature)),
            Some(Err(_)) => return Err(VcpuTypeError::Number(text.to_owned())),
            None if text == HOST => None,
            None => Some(text.parse()?),
        };
        Ok(Self { text: text.to_owned(), model })
    }
}

impl<'de> Deserialize<'de> for VcpuType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for VcpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

from_str!(VcpuType, "MODEL", "CPU model, like `\"EPYC-Milan\"`");
