//! What serves a pair of queues: one for each direction.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::super::service::{Service, Stop};
use super::carrier::Carrier;
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

pub(super) struct Worker {
    pub(super) service: Arc<Service>,
    pub(super) link: Arc<dyn Link>,
    pub(super) carrier: Carrier,
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
            RECEIVE | RECEIVE_TIMER => self.receive.serve(&*self.link)?,
            _ => self.transmit.serve(&*self.link)?,
        }
        if self.receive.link_failed || self.transmit.link_failed {
            (self.receive.link_failed, self.transmit.link_failed) = (false, false);
            self.carrier.is_lost(&*self.link, self.service.control());
        }
        Ok(())
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let (receive, transmit) = (&self.receive, &self.transmit);
        for (queue, source, what) in [
            (&receive.queue, receive.queue.kick().as_raw_fd(), RECEIVE),
            (&receive.queue, self.link.as_fd().as_raw_fd(), RECEIVE),
            (&receive.queue, receive.throttle.as_raw_fd(), RECEIVE_TIMER),
            (&transmit.queue, transmit.queue.kick().as_raw_fd(), TRANSMIT),
            (&transmit.queue, transmit.throttle.as_raw_fd(), TRANSMIT_TIMER),
        ] {
            self.service.listen(ops, queue.index(), source, what);
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if self.service.is_stopped() {
            return;
        }
        if events.event_set().intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.carrier.is_lost(&*self.link, self.service.control());
        }
        let served = self.handle(events.data());
        self.service.check(self.receive.queue.index(), served);
    }
}
