//! Messages to the service manager (sd_notify(3)): one datagram each, to the socket that it names.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use crate::error::SupervisorError;

/// How long a service manager may take for a datagram.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager, if one started this process and listens.
pub(crate) struct Notifier(Option<SocketAddr>);

impl Notifier {
    /// The one that the environment names.
    pub(crate) fn of_environment() -> Result<Self, SupervisorError> {
        match env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
            Some(name) => Self::at(&name),
            None => Ok(Self(None)),
        }
    }

    /// The one at the socket `name`: a path, or after `@` a name in the abstract namespace.
    fn at(name: &OsStr) -> Result<Self, SupervisorError> {
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(name),
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name),
            _ => return Err(SupervisorError::NotifyName(name.to_owned())),
        };
        let name = || name.to_owned();
        address
            .map(|address| Self(Some(address)))
            .map_err(|source| SupervisorError::NotifySocket { name: name(), source })
    }

    /// Sends assignments, one a line. A service manager that takes none is not waited for: its own
    /// limits then end this process.
    pub(crate) fn tell(&self, assignments: &str) {
        if let Some(address) = &self.0 {
            let _ = send(address, assignments);
        }
    }

    /// READY: the guest runs.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\nSTATUS=The guest runs");
    }

    /// STOPPING, and that `within` may pass before the process has ended.
    pub(crate) fn stopping(&self, status: &str, within: Duration) {
        let microseconds = within.as_micros();
        self.tell(&format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={microseconds}"));
    }

    pub(crate) fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    pub(crate) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }
}

/// The socket is made anew for each message: the child is to inherit none.
fn send(address: &SocketAddr, assignments: &str) -> io::Result<usize> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.send_to_addr(assignments.as_bytes(), address)
}

/// How often the service manager expects a sign of life: half of the time after which it ends the
/// service. `None` if it expects none from this process.
pub(crate) fn watchdog_interval() -> Result<Option<Duration>, SupervisorError> {
    interval(env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"), process::id())
}

fn interval(
    microseconds: Option<OsString>,
    process: Option<OsString>,
    own: u32,
) -> Result<Option<Duration>, SupervisorError> {
    let Some(microseconds) = microseconds else { return Ok(None) };
    // Set for another process, and inherited.
    if process.is_some_and(|process| process != own.to_string().as_str()) {
        return Ok(None);
    }
    match microseconds.to_str().and_then(|text| text.parse().ok()) {
        Some(microseconds @ 2..) => Ok(Some(Duration::from_micros(microseconds) / 2)),
        _ => Err(SupervisorError::WatchdogInterval(microseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_a_socket_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("casemate-notify-{}", process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ];
        for (listener, address) in listeners {
            let notifier = Notifier::at(&address).unwrap();
            notifier.ready();
            notifier.stopping("The guest powers off", Duration::from_secs(90));
            let mut buffer = [0; 256];
            let mut message = || {
                let count = listener.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..count]).into_owned()
            };
            assert_eq!(message(), "READY=1\nSTATUS=The guest runs");
            let stopping = "STOPPING=1\nSTATUS=The guest powers off\nEXTEND_TIMEOUT_USEC=90000000";
            assert_eq!(message(), stopping);
        }
    }

    #[test]
    fn absent_and_silent_service_managers_hold_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        Notifier::at(path.as_os_str()).unwrap().ready();
        // It reads nothing, and its queue takes net.unix.max_dgram_qlen messages, which is 10 by default.
        let _listener = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::at(path.as_os_str()).unwrap();
        for _ in 0..12 {
            notifier.alive();
        }
        Notifier(None).ready();
        for name in ["", "relative", "vsock:2:1234"] {
            assert!(Notifier::at(OsStr::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn watchdog_of_another_process_is_not_fed() {
        let some = |text: &str| Some(OsString::from(text));
        let second = Some(Duration::from_secs(1));
        assert_eq!(interval(some("2000000"), some("7"), 7).unwrap(), second);
        assert_eq!(interval(some("2000000"), None, 7).unwrap(), second);
        assert_eq!(interval(some("2000000"), some("8"), 7).unwrap(), None);
        assert_eq!(interval(None, some("7"), 7).unwrap(), None);
        for wrong in ["", "0", "1", "-5", "1s"] {
            assert!(interval(some(wrong), None, 7).is_err(), "{wrong}");
        }
    }
}
