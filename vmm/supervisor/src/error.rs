//! What can go wrong in the parent.

use std::ffi::OsString;
use std::io;

use casemate_sandbox::SpawnError;

/// Why the guest's process could not be started or watched.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The signals of this process could not be taken.
    #[error("could not watch for signals")]
    Signals(#[source] io::Error),
    /// No link to a child could be made.
    #[error("could not start the guest's process")]
    Link(#[source] io::Error),
    /// The child did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The parent's end of the link is not in the parent.
    #[error("the link to the guest's process is gone")]
    NoLink,
    /// The child cannot be waited for.
    #[error("could not wait for the guest's process")]
    Wait(#[source] io::Error),
    /// The service manager's socket has no name that it could have (sd_notify(3)).
    #[error("NOTIFY_SOCKET = {0:?} is neither an absolute path nor @ and a name; unset it")]
    NotifyName(OsString),
    /// The service manager's socket has a name that is too long, or holds a zero.
    #[error("NOTIFY_SOCKET = {name:?} is not a socket; unset it")]
    NotifySocket {
        /// The name.
        name: OsString,
        /// What is wrong.
        source: io::Error,
    },
    /// The interval of the service manager's watchdog (sd_watchdog_enabled(3)) is no number.
    #[error("WATCHDOG_USEC = {0:?} is not a number of microseconds; unset it")]
    WatchdogInterval(OsString),
}
