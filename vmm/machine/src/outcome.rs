//! How a guest's run ended.

use std::sync::{Arc, OnceLock};
use std::{fmt, io};

use casemate_devices::legacy::{GuestEnd, OnEnd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest gave a status of its own.
    Status(u8),
    /// The guest reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// A vCPU met a fault that it could not handle (triple fault).
    TripleFault,
    /// Somebody on the host asked for it.
    Stopped,
    /// The guest was asked to power off, and did not in time.
    TimedOut,
    /// The host could not go on; why.
    Failed(String),
}

impl Outcome {
    /// The exit status that tells it.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Status(status) => *status,
            Self::Reset => 120,
            Self::Panic => 121,
            Self::TripleFault => 122,
            Self::Stopped => 123,
            Self::Failed(_) => 124,
            Self::TimedOut => 125,
        }
    }

    /// One word for machines to read.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Status(_) => "status",
            Self::Reset => "reset",
            Self::Panic => "panic",
            Self::TripleFault => "triple-fault",
            Self::Stopped => "stopped",
            Self::TimedOut => "stop-timeout",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Status(status) => write!(f, "the guest ended with status {status}"),
            Self::Reset => f.write_str("the guest reset"),
            Self::Panic => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest met a triple fault"),
            Self::Stopped => f.write_str("the guest was stopped from the host"),
            Self::TimedOut => f.write_str("the guest did not power off in time and was ended"),
            Self::Failed(why) => write!(f, "the guest could not go on: {why}"),
        }
    }
}

impl From<GuestEnd> for Outcome {
    fn from(end: GuestEnd) -> Self {
        match end {
            GuestEnd::PowerOff => Self::PowerOff,
            GuestEnd::Reset => Self::Reset,
            GuestEnd::Panic => Self::Panic,
            GuestEnd::Status(status) => Self::Status(status),
        }
    }
}

/// The end of a run: anybody may declare it, the first one counts, and everybody learns of it.
#[derive(Clone)]
pub(crate) struct End(Arc<Shared>);

struct Shared {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl End {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { outcome: OnceLock::new(), event })))
    }

    pub(crate) fn declare(&self, outcome: Outcome) {
        if self.0.outcome.set(outcome).is_ok() {
            // Fails only if the count overflows; this is the only write.
            let _ = self.0.event.write(1);
        }
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.0.outcome.get()
    }

    /// Readable from the moment when the end was declared.
    pub(crate) fn event(&self) -> &EventFd {
        &self.0.event
    }

    /// For devices.
    pub(crate) fn on_end(&self) -> OnEnd {
        let end = self.clone();
        Arc::new(move |how| end.declare(how.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let end = End::new().unwrap();
        assert!(end.outcome().is_none() && end.event().read().is_err());
        end.on_end()(GuestEnd::Panic);
        end.declare(Outcome::Reset);
        assert_eq!(end.outcome(), Some(&Outcome::Panic));
        assert_eq!(end.event().read().unwrap(), 1);
    }
}
