//! The parent of the process that holds a guest: signals, restarts, the service manager.
//!
//! [`Supervisor::supervise`] runs each life of a guest in a child of its own. The child speaks with its parent
//! over a [link](ToParent) of single bytes.

mod error;
mod link;
mod notify;
mod restarts;
mod supervisor;
mod terminal;

pub use error::SupervisorError;
pub use link::{Command, Event, Next, ToParent};
pub use restarts::{MOST as MOST_RESTARTS, PERIOD as RESTART_PERIOD};
pub use supervisor::{Supervisor, Verdict};
