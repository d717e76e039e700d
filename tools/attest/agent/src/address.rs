//! Where a broker is.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// The port of a broker, on vsock and on TCP.
pub const DEFAULT_PORT: u16 = 8080;
/// The host's context identifier, from inside a guest (vsock(7), `VMADDR_CID_HOST`).
const CID_HOST: u32 = 2;
/// How long a connection attempt, a read or a write may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Where a broker listens. Names are not resolved: a static binary has no resolver, and a guest may
/// have no network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `vsock:CID:PORT`; the host's CID is 2.
    Vsock {
        /// Context identifier.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// `tcp:IP:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// Not an address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not an address: write vsock:CID:PORT (the host is CID 2), tcp:IP:PORT or unix:PATH"
)]
pub struct AddressError(String);

impl Address {
    /// The host, over vsock.
    #[must_use]
    pub fn host() -> Self {
        Self::host_at(u32::from(DEFAULT_PORT))
    }

    /// A port of the host's, over vsock.
    #[must_use]
    pub fn host_at(port: u32) -> Self {
        Address::Vsock { cid: CID_HOST, port }
    }

    /// Connects, with timeouts for all that follows.
    ///
    /// # Errors
    /// Nobody listens there, or does not answer.
    pub fn connect(&self) -> io::Result<Socket> {
        let socket = match self {
            Address::Vsock { cid, port } => {
                let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
                socket.connect(&SockAddr::vsock(*cid, *port))?;
                socket
            }
            Address::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                socket.connect_timeout(&SockAddr::from(*address), TIMEOUT)?;
                socket
            }
            Address::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.connect(&SockAddr::unix(path)?)?;
                socket
            }
        };
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(socket)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        match text.split_once(':') {
            Some(("vsock", rest)) => {
                let (cid, port) = rest.split_once(':').ok_or_else(error)?;
                let number = |text: &str| text.parse().map_err(|_| error());
                Ok(Address::Vsock { cid: number(cid)?, port: number(port)? })
            }
            Some(("tcp", rest)) => rest.parse().map(Address::Tcp).map_err(|_| error()),
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Vsock { cid, port } => write!(formatter, "vsock:{cid}:{port}"),
            Address::Tcp(address) => write!(formatter, "tcp:{address}"),
            Address::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["vsock:2:8080", "tcp:127.0.0.1:1", "tcp:[::1]:65535", "unix:/run/broker"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", "vsock:2", "vsock:host:1", "tcp:localhost:80", "tcp:1.2.3.4", "unix:", "2:8080"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
