//! The control queue: how many pairs of queues the driver uses.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};

use super::super::service::{Service, Stop};
use super::super::{Chain, QueueFault, Virtqueue};
use super::link::Link;
use super::packet::{CONTROL_LEN, requested_pairs};
use super::worker::BUDGET;

pub(super) struct Control {
    pub(super) service: Arc<Service>,
    pub(super) queue: Virtqueue,
    pub(super) links: Vec<Arc<dyn Link>>,
}

impl Control {
    fn serve(&mut self) -> Result<(), Stop> {
        for _ in 0..BUDGET {
            match self.queue.next_chain()? {
                Some(chain) => self.answer(chain)?,
                None if self.queue.enable_notification()? => {}
                None => return Ok(self.queue.notify_if_needed()?),
            }
        }
        self.queue.notify_if_needed()?;
        Ok(self.queue.kick().write(1)?)
    }

    fn answer(&mut self, chain: Chain) -> Result<(), QueueFault> {
        if chain.writable_len() == 0 {
            return Err(chain.malformed("no room for the answer to a control request"));
        }
        let mut request = [0; CONTROL_LEN + 1];
        let len = request.len().min(chain.readable_len() as usize);
        chain.read(self.queue.memory(), 0, &mut request[..len])?;
        let pairs = u16::try_from(self.links.len()).unwrap_or(u16::MAX);
        let done = requested_pairs(&request[..len], pairs)
            .is_some_and(|pairs| attach(&self.links, usize::from(pairs)).is_ok());
        let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        chain.write(self.queue.memory(), 0, &answer.to_le_bytes()[..1])?;
        self.queue.complete(chain, 1)
    }
}

/// Lets the host spread packets over the first `pairs` of the links, and no others.
pub(super) fn attach(links: &[Arc<dyn Link>], pairs: usize) -> std::io::Result<()> {
    links
        .iter()
        .enumerate()
        .try_for_each(|(index, link)| link.set_attached(index < pairs))
        .inspect_err(|error| tracing::warn!(%error, "cannot use {pairs} queues of the tap"))
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let queue = &self.queue;
        self.service.listen(ops, queue.index(), queue.kick().as_raw_fd(), 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if !self.service.is_stopped() {
            let served = self.serve();
            self.service.check(self.queue.index(), served);
        }
    }
}
