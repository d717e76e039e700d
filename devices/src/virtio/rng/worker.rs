//! Serves the queue: fills buffers.

use std::fs::File;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::ReadVolatile;

use crate::virtio::{DeviceControl, Virtqueue};

/// Bytes that one request gets at most: a driver asks for tens of them, and should not keep the
/// thread busy with more.
pub(super) const MOST_BYTES: u32 = 4096;

pub(super) struct Worker {
    source: File,
    queue: Virtqueue,
    control: DeviceControl,
}

impl Worker {
    pub(super) fn new(source: File, queue: Virtqueue, control: DeviceControl) -> Self {
        Self { source, queue, control }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.queue.kick(), EventSet::IN)) {
            tracing::error!(%error, "the entropy device cannot wait for its driver");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let source = &mut self.source;
        let served = self.queue.serve(|chain, memory| {
            let len = chain.writable_len().min(MOST_BYTES);
            if len == 0 {
                return Err(chain.malformed("an entropy request has no room for bytes"));
            }
            chain.for_each_writable(memory, 0, len as usize, |mut buffer| {
                source.read_exact_volatile(&mut buffer)
            })?;
            Ok(len)
        });
        if let Err(fault) = served {
            self.control.needs_reset(&fault);
            // Fails only if it is not there any more.
            let _ = ops.remove(events);
        }
    }
}
