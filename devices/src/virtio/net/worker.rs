//! What serves a pair of queues: one for each direction.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::super::{DeviceControl, FaultReason, QueueFault};
use super::link::Link;
use super::receive::Receive;
use super::transmit::Transmit;

/// Packets that are passed on before others on the same thread get their turn.
pub(super) const BUDGET: usize = 256;

/// Event data: what has happened.
const RECEIVE: u32 = 0;
const RECEIVE_TIMER: u32 = 1;
const TRANSMIT: u32 = 2;
const TRANSMIT_TIMER: u32 = 3;

/// What the queues of an activated interface share.
pub(super) struct Session {
    pub(super) control: DeviceControl,
    /// A queue is broken, so none is served any longer.
    pub(super) stopped: AtomicBool,
}

/// Why a queue can no longer be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error(transparent)]
    Driver(#[from] QueueFault),
    #[error("the host cannot serve a network interface")]
    Host(#[from] io::Error),
}

impl Session {
    /// Stops all queues because of `queue`.
    pub(super) fn stop(&self, queue: u16, stop: &Stop) {
        self.stopped.store(true, Ordering::Release);
        let fault = match stop {
            Stop::Driver(fault) => *fault,
            Stop::Host(error) => {
                tracing::error!(%error, "the host cannot serve a network interface");
                let reason = FaultReason::Request("the host cannot serve this queue");
                QueueFault { queue, address: 0, reason }
            }
        };
        self.control.needs_reset(&fault);
    }
}

pub(super) struct Worker {
    pub(super) session: Arc<Session>,
    pub(super) link: Arc<dyn Link>,
    pub(super) receive: Receive,
    pub(super) transmit: Transmit,
}

impl Worker {
    fn handle(&mut self, what: u32) -> Result<(), Stop> {
        match what {
            RECEIVE_TIMER => self.receive.throttle.timer_fired()?,
            TRANSMIT_TIMER => self.transmit.throttle.timer_fired()?,
            _ => {}
        }
        match what {
            RECEIVE | RECEIVE_TIMER => self.receive.serve(&*self.link),
            _ => self.transmit.serve(&*self.link),
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Edges: what is ready is not read, which saves a system call per event; and packets for
        // which the guest has no room do not keep the thread awake.
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let sources = [
            (self.receive.queue.kick().as_raw_fd(), RECEIVE),
            (self.link.as_fd().as_raw_fd(), RECEIVE),
            (self.receive.throttle.as_raw_fd(), RECEIVE_TIMER),
            (self.transmit.queue.kick().as_raw_fd(), TRANSMIT),
            (self.transmit.throttle.as_raw_fd(), TRANSMIT_TIMER),
        ];
        for (source, what) in sources {
            if let Err(error) = ops.add(Events::with_data_raw(source, what, edges)) {
                let queue = self.receive.queue.index();
                self.session.stop(queue, &Stop::Host(io::Error::other(error)));
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if self.session.stopped.load(Ordering::Acquire) {
            return;
        }
        if let Err(stop) = self.handle(events.data()) {
            self.session.stop(self.receive.queue.index(), &stop);
        }
    }
}
