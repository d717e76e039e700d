//! Packets from the host to the guest.

use std::collections::VecDeque;
use std::io;

use super::super::service::Stop;
use super::super::{Chain, QueueFault, Virtqueue};
use super::link::{self, Link};
use super::packet::{HEADER_LEN, NUM_BUFFERS_OFFSET};
use super::worker::BUDGET;
use crate::rate_limit::Throttle;

pub(super) struct Receive {
    pub(super) queue: Virtqueue,
    pub(super) throttle: Throttle,
    /// The host failed to give a packet since somebody looked.
    pub(super) link_failed: bool,
    /// A packet may be spread over several chains (MRG_RXBUF).
    mergeable: bool,
    /// Bytes of the longest packet that is to be expected, with its header.
    longest: usize,
    /// Chains that wait for packets, and their bytes and buffers.
    posted: VecDeque<Chain>,
    room: usize,
    buffers: usize,
}

impl Receive {
    pub(super) fn new(
        queue: Virtqueue,
        throttle: Throttle,
        mergeable: bool,
        longest: usize,
    ) -> Self {
        let posted = VecDeque::new();
        Self {
            queue,
            throttle,
            link_failed: false,
            mergeable,
            longest,
            posted,
            room: 0,
            buffers: 0,
        }
    }

    /// Passes packets on until there are none, or no room for them.
    pub(super) fn serve(&mut self, link: &dyn Link) -> Result<(), Stop> {
        let result = self.pass_on(link);
        self.queue.notify_if_needed()?;
        if result? {
            // There may be more, but it is the turn of others.
            self.queue.kick().write(1)?;
        }
        Ok(())
    }

    /// Whether there may be more packets, and room for them.
    fn pass_on(&mut self, link: &dyn Link) -> Result<bool, Stop> {
        for _ in 0..BUDGET {
            // The timer resumes what the limit holds back, a kick what lacks buffers.
            if !self.throttle.may_begin()? || !self.make_room()? {
                return Ok(false);
            }
            let received = link::receive(link, self.queue.memory(), self.posted.iter())?;
            match received {
                Ok(Some(bytes)) if bytes > HEADER_LEN as usize => {
                    self.throttle.charge(bytes as u64 - u64::from(HEADER_LEN));
                    self.deliver(bytes)?;
                }
                Ok(_) => tracing::debug!("a packet is too long for the guest's buffers"),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "cannot receive from the tap");
                        self.link_failed = true;
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Takes chains from the queue until the longest packet would fit. Where the driver cannot post
    /// as much, all that fits its queue must do.
    fn make_room(&mut self) -> Result<bool, QueueFault> {
        loop {
            let full = self.buffers >= usize::from(self.queue.size());
            let enough = if self.mergeable { self.room >= self.longest } else { self.room > 0 };
            if enough || full {
                return Ok(true);
            }
            match self.queue.next_chain()? {
                Some(chain) => self.post(chain)?,
                None if self.queue.enable_notification()? => {}
                None => return Ok(false),
            }
        }
    }

    fn post(&mut self, chain: Chain) -> Result<(), QueueFault> {
        if chain.writable_len() < HEADER_LEN {
            return Err(chain.malformed("no room for the header of a packet"));
        }
        self.room += chain.writable_len() as usize;
        self.buffers += chain.writable().len();
        self.posted.push_back(chain);
        Ok(())
    }

    /// Gives the chains to the driver in which a packet of `bytes` bytes, with its header, lies.
    fn deliver(&mut self, bytes: usize) -> Result<(), QueueFault> {
        let mut left = bytes;
        let mut parts = Vec::with_capacity(1);
        while left > 0 {
            let Some(chain) = self.posted.pop_front() else { break };
            let written = chain.writable_len().min(u32::try_from(left).unwrap_or(u32::MAX));
            self.room -= chain.writable_len() as usize;
            self.buffers -= chain.writable().len();
            left -= written as usize;
            parts.push((chain, written));
        }
        if let Some((first, _)) = parts.first() {
            // Section 5.1.6.4: 1 without MRG_RXBUF.
            let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
            first.write(self.queue.memory(), NUM_BUFFERS_OFFSET, &count.to_le_bytes())?;
        }
        self.queue.complete_all(parts)
    }
}
