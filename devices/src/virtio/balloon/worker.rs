//! Serves the queues: takes pages.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::request::Pages;
use super::{Discard, PAGE_SIZE};
use crate::virtio::{DeviceControl, QueueFault, Virtqueue};

/// Event data: which queue was kicked.
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const REPORT: u32 = 2;

pub(super) struct Worker {
    inflate: Virtqueue,
    deflate: Virtqueue,
    report: Option<Virtqueue>,
    discard: Arc<dyn Discard>,
    control: DeviceControl,
    pages: Pages,
}

impl Worker {
    pub(super) fn new(
        inflate: Virtqueue,
        deflate: Virtqueue,
        report: Option<Virtqueue>,
        discard: Arc<dyn Discard>,
        control: DeviceControl,
    ) -> Self {
        Self { inflate, deflate, report, discard, control, pages: Pages::default() }
    }

    fn serve(&mut self, queue: u32) -> Result<(), QueueFault> {
        let (discard, pages) = (&*self.discard, &mut self.pages);
        match (queue, &mut self.report) {
            (INFLATE, _) => self.inflate.serve(|chain, memory| {
                pages.read(chain, memory)?;
                for (start, len) in pages.runs() {
                    let fits = usize::try_from(len)
                        .is_ok_and(|len| memory.check_range(start, len, Permissions::Write));
                    if !fits {
                        return Err(chain.malformed("a page for the balloon is not in memory"));
                    }
                    give_back(discard, start, len);
                }
                Ok(0)
            }),
            // The guest uses the pages from now on; the kernel gives them back as they are touched.
            (DEFLATE, _) => self.deflate.serve(|_, _| Ok(0)),
            (_, Some(report)) => report.serve(|chain, _| {
                for buffer in chain.writable() {
                    let end = buffer.address.0 + u64::from(buffer.len);
                    let start = buffer.address.0.next_multiple_of(PAGE_SIZE);
                    let len = (end & !(PAGE_SIZE - 1)).saturating_sub(start);
                    if len > 0 {
                        give_back(discard, GuestAddress(start), len);
                    }
                }
                Ok(0)
            }),
            _ => Ok(()),
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut wait = |queue: &Virtqueue, data| {
            if let Err(error) = ops.add(Events::with_data(queue.kick(), data, EventSet::IN)) {
                tracing::error!(%error, "the balloon cannot wait for its driver");
            }
        };
        wait(&self.inflate, INFLATE);
        wait(&self.deflate, DEFLATE);
        if let Some(report) = &self.report {
            wait(report, REPORT);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Err(fault) = self.serve(events.data()) {
            self.control.needs_reset(&fault);
            for queue in [&self.inflate, &self.deflate].into_iter().chain(&self.report) {
                // Fails only if it is not there any more.
                let _ = ops.remove(Events::empty(queue.kick()));
            }
        }
    }
}

/// A page that stays is a page more for the host to keep, nothing worse.
fn give_back(discard: &dyn Discard, start: GuestAddress, len: u64) {
    if let Err(error) = discard.discard(start, len) {
        tracing::warn!(%error, "cannot give {len} bytes at {:#x} back to the host", start.0);
    }
}
