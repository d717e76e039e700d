//! Packets from the guest to the host.

use super::super::service::Stop;
use super::super::{Chain, QueueFault, Virtqueue};
use super::link::{self, Link};
use super::packet::{HEADER_LEN, Header, Offloads, checked_header};
use super::worker::BUDGET;
use crate::rate_limit::Throttle;

pub(super) struct Transmit {
    pub(super) queue: Virtqueue,
    pub(super) throttle: Throttle,
    /// The host failed to take a packet since somebody looked.
    pub(super) link_failed: bool,
    offloads: Offloads,
}

impl Transmit {
    pub(super) fn new(queue: Virtqueue, throttle: Throttle, offloads: Offloads) -> Self {
        Self { queue, throttle, link_failed: false, offloads }
    }

    /// Passes packets on until there are none.
    pub(super) fn serve(&mut self, link: &dyn Link) -> Result<(), Stop> {
        let result = self.pass_on(link);
        self.queue.notify_if_needed()?;
        if result? {
            // There are more, but it is the turn of others.
            self.queue.kick().write(1)?;
        }
        Ok(())
    }

    /// Whether there are more packets.
    fn pass_on(&mut self, link: &dyn Link) -> Result<bool, Stop> {
        for _ in 0..BUDGET {
            // The timer resumes what the limit holds back.
            if !self.throttle.may_begin()? {
                return Ok(false);
            }
            match self.queue.next_chain()? {
                Some(chain) => {
                    self.send(link, &chain)?;
                    self.queue.complete(chain, 0)?;
                }
                None if self.queue.enable_notification()? => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Sends a packet, or drops it: as on any network, that is no error.
    fn send(&mut self, link: &dyn Link, chain: &Chain) -> Result<(), QueueFault> {
        let len = chain.readable_len().checked_sub(HEADER_LEN);
        let len = len.ok_or_else(|| chain.malformed("no header before a packet"))?;
        let mut header = Header::default();
        chain.read(self.queue.memory(), 0, &mut header)?;
        self.throttle.charge(len.into());
        match checked_header(&header, len, self.offloads) {
            Ok(header) => {
                if let Err(error) = link::send(link, self.queue.memory(), header, chain)? {
                    tracing::debug!(%error, "the tap does not take a packet");
                    self.link_failed = true;
                }
            }
            Err(error) => tracing::debug!(%error, "dropped what the guest sent"),
        }
        Ok(())
    }
}
