//! What the workers of an activated device share: their right to serve it, until one of them finds
//! that impossible.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, EventSet, Events};

use super::{DeviceControl, FaultReason, QueueFault};

/// Why a queue can no longer be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// The driver broke its rules.
    #[error(transparent)]
    Driver(#[from] QueueFault),
    /// A call failed without which no queue can be served.
    #[error("the host does not let the device work")]
    Host(#[from] io::Error),
}

/// One activation of a device.
pub(super) struct Service {
    control: DeviceControl,
    stopped: AtomicBool,
}

impl Service {
    pub(super) fn new(control: DeviceControl) -> Self {
        Self { control, stopped: AtomicBool::new(false) }
    }

    /// The way to the driver.
    pub(super) const fn control(&self) -> &DeviceControl {
        &self.control
    }

    /// Whether a queue is broken, so that none is to be served until the driver resets the device.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Stops all queues if one of them, `queue`, could not be served.
    pub(super) fn check(&self, queue: u16, served: Result<(), Stop>) {
        let Err(stop) = served else { return };
        let fault = match stop {
            Stop::Driver(fault) => fault,
            Stop::Host(error) => {
                tracing::error!(queue, %error, "the host does not let the device work");
                let reason = FaultReason::Request("the host cannot serve this queue");
                QueueFault { queue, address: 0, reason }
            }
        };
        self.stopped.store(true, Ordering::Release);
        self.control.needs_reset(&fault);
    }

    /// Has a worker of `queue` called with event data `what` each time `source` becomes readable.
    ///
    /// Edges, not levels: what is readable need not be read, which saves a system call per event,
    /// and what has to wait does not keep the thread awake.
    pub(super) fn listen(&self, ops: &mut EventOps<'_>, queue: u16, source: RawFd, what: u32) {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let added = ops.add(Events::with_data_raw(source, what, edges));
        self.check(queue, added.map_err(|error| Stop::Host(io::Error::other(error))));
    }
}
