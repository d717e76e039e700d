//! Where a TDX quote generation service listens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use crate::FlagError;
use crate::keys::from_str;

/// Where a TDX quote generation service (Intel's QGS, or one that speaks its protocol) listens:
/// `unix:/PATH` or `vsock:CID:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuoteService {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port of this machine (CID 1 or 2) or of a guest.
    Vsock {
        /// Context identifier.
        cid: u32,
        /// Port; 4050 by custom.
        port: u32,
    },
}

impl Default for QuoteService {
    /// Where Intel's packages have it.
    fn default() -> Self {
        Self::Unix("/var/run/tdx-qgs/qgs.socket".into())
    }
}

impl FromStr for QuoteService {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        let vsock = |rest: &str| {
            let (cid, port) = rest.split_once(':')?;
            Some(Self::Vsock { cid: cid.parse().ok()?, port: port.parse().ok()? })
        };
        let service = match text.split_once(':') {
            Some(("unix", path)) if Path::new(path).is_absolute() => Some(Self::Unix(path.into())),
            Some(("vsock", rest)) => vsock(rest),
            _ => None,
        };
        service.ok_or_else(|| FlagError::expected(text, "of the form unix:/PATH or vsock:CID:PORT"))
    }
}

impl fmt::Display for QuoteService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for QuoteService {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

from_str!(
    QuoteService,
    "ADDRESS",
    "`\"unix:/PATH\"` or `\"vsock:CID:PORT\"`",
    |service| format!("\"{service}\""),
    |_, error| error
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/run/qgs", "vsock:2:4050"] {
            assert_eq!(text.parse::<QuoteService>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "unix:here", "vsock:2", "vsock:a:1", "vsock:1:2:3", "/run/qgs"] {
            assert!(text.parse::<QuoteService>().is_err(), "{text}");
        }
    }
}
