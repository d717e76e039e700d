//! Where a broker listens.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_foreign::Foreign;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::peer::Peer;

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

enum Socket {
    Vsock(VsockListener),
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// The address is in use, or this machine does not have its kind.
    pub fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        let socket = match address {
            ListenAddress::Vsock(port) => {
                VsockListener::bind_with_cid_port(VMADDR_CID_ANY, *port).map(Socket::Vsock)
            }
            ListenAddress::Tcp(at) => TcpListener::bind(at).map(Socket::Tcp),
            ListenAddress::Unix(path) => bind_unix(path).map(Socket::Unix),
        };
        let address = match &socket {
            // Port 0 became a real one.
            Ok(Socket::Tcp(listener)) => {
                listener.local_addr().map_or_else(|_| address.clone(), ListenAddress::Tcp)
            }
            _ => address.clone(),
        };
        match socket {
            Ok(socket) => Ok(Listener { address, socket }),
            Err(source) => Err(BindError { address, source }),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The next connection, and who makes it.
    pub(crate) fn accept(&self) -> io::Result<(Connection, Peer)> {
        match &self.socket {
            Socket::Vsock(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Connection::Vsock(stream), Peer::Vsock(peer.cid())))
            }
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Connection::Tcp(stream), Peer::Tcp(peer.ip())))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let path = match &self.address {
                    ListenAddress::Unix(path) => path.to_string_lossy().into(),
                    other => other.to_string().into(),
                };
                Ok((Connection::Unix(stream), Peer::Unix(path)))
            }
        }
    }
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

/// A connection.
pub(crate) enum Connection {
    Vsock(VsockStream),
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Ends the connection for whoever reads or writes it.
    pub(crate) fn close(&self) {
        // It may have ended already.
        let _ = match self {
            Connection::Vsock(stream) => stream.shutdown(Shutdown::Both),
            Connection::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Connection::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout);
        match self {
            Connection::Vsock(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Connection::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Connection::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }
}

/// A connection that breaks at a point in time, however slowly the peer goes on.
pub(crate) struct Timed {
    connection: Arc<Connection>,
    deadline: Instant,
}

impl Timed {
    pub(crate) fn new(connection: Arc<Connection>, deadline: Instant) -> Self {
        Timed { connection, deadline }
    }

    fn arm(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.connection.set_timeouts(left)
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        match &*self.connection {
            Connection::Vsock(stream) => (&mut &*stream).read(buffer),
            Connection::Tcp(stream) => (&mut &*stream).read(buffer),
            Connection::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.arm()?;
        match &*self.connection {
            Connection::Vsock(stream) => (&mut &*stream).write(buffer),
            Connection::Tcp(stream) => (&mut &*stream).write(buffer),
            Connection::Unix(stream) => (&mut &*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &*self.connection {
            Connection::Vsock(stream) => (&mut &*stream).flush(),
            Connection::Tcp(stream) => (&mut &*stream).flush(),
            Connection::Unix(stream) => (&mut &*stream).flush(),
        }
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
