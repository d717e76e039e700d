//! Where a broker listens.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use casemate_foreign::Foreign;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::peer::Peer;

/// Every context identifier of this machine (vsock(7), `VMADDR_CID_ANY`).
const CID_ANY: u32 = u32::MAX;
/// How many connections may wait to be accepted, as for the standard library's listeners.
const BACKLOG: i32 = 128;

/// A place to listen at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenAddress {
    /// `vsock:PORT`, for guests of this host.
    Vsock(u32),
    /// `tcp:IP:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`, where a VMM forwards a guest's vsock connections to a socket of that path.
    Unix(PathBuf),
}

/// Not a place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no place to listen at: write vsock:PORT, tcp:IP:PORT or unix:PATH", Foreign(.0))]
pub struct ListenAddressError(String);

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        let error = || ListenAddressError(text.to_owned());
        match text.split_once(':') {
            Some(("vsock", port)) => port.parse().map(ListenAddress::Vsock).map_err(|_| error()),
            Some(("tcp", rest)) => rest.parse().map(ListenAddress::Tcp).map_err(|_| error()),
            Some(("unix", path)) if !path.is_empty() => Ok(ListenAddress::Unix(path.into())),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Vsock(port) => write!(formatter, "vsock:{port}"),
            ListenAddress::Tcp(address) => write!(formatter, "tcp:{address}"),
            ListenAddress::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// A place that cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("could not listen at {address}")]
pub struct BindError {
    /// Where.
    pub address: ListenAddress,
    source: io::Error,
}

/// A socket that listens.
pub struct Listener {
    address: ListenAddress,
    socket: Socket,
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// The address is in use, or this machine does not have its kind.
    pub fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        let socket = match address {
            ListenAddress::Vsock(port) => bind_vsock(*port),
            ListenAddress::Tcp(at) => TcpListener::bind(at).map(Socket::from),
            ListenAddress::Unix(path) => bind_unix(path).map(Socket::from),
        };
        let socket = socket.map_err(|source| BindError { address: address.clone(), source })?;
        // Port 0 became a real one.
        let bound = socket.local_addr().ok().and_then(|address| address.as_socket());
        Ok(Listener { address: bound.map_or_else(|| address.clone(), ListenAddress::Tcp), socket })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The next connection, and who makes it.
    pub(crate) fn accept(&self) -> io::Result<(Socket, Peer)> {
        let (connection, address) = self.socket.accept()?;
        let peer = match (address.as_vsock_address(), address.as_socket()) {
            (Some((cid, _)), _) => Peer::Vsock(cid),
            (_, Some(address)) => Peer::Tcp(address.ip()),
            _ => match &self.address {
                ListenAddress::Unix(path) => Peer::Unix(path.to_string_lossy().into()),
                other => Peer::Unix(other.to_string().into()),
            },
        };
        Ok((connection, peer))
    }
}

/// Listens at a port for the guests of this machine.
fn bind_vsock(port: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.bind(&SockAddr::vsock(CID_ANY, port))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Listens at a path. A socket there that nobody listens at any more, a dead process's, is replaced.
///
/// # Errors
/// Somebody listens there, something else is there, or the folder does not allow it.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    UnixListener::bind(path)
}

/// A connection that breaks at a point in time, however slowly the peer goes on.
pub(crate) struct Timed {
    connection: Arc<Socket>,
    deadline: Instant,
}

impl Timed {
    pub(crate) fn new(connection: Arc<Socket>, deadline: Instant) -> Self {
        Timed { connection, deadline }
    }

    fn arm(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.connection.set_read_timeout(Some(left))?;
        self.connection.set_write_timeout(Some(left))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        (&*self.connection).read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.arm()?;
        (&*self.connection).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.connection).flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_dead_predecessor_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = bind_unix(&path).unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The file stays, as after a kill.
        drop(first);
        let second = bind_unix(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert!(bind_unix(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["vsock:8080", "tcp:127.0.0.1:0", "tcp:[::1]:80", "unix:/run/broker.sock"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in ["", "8080", "tcp:8080", "tcp:localhost:80", "vsock:2:8080", "unix:"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
