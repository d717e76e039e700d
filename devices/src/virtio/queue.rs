//! A strict front for a split virtqueue (VIRTIO 1.2, section 2.7).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Buffer, Chain, Walk};
use super::device::{ActiveQueue, QueueInterrupt};
use super::fault::{FaultReason, QueueFault};
use crate::memory::{DeviceMemory, Quick as _};

/// The driver wants no interrupt: `VIRTQ_AVAIL_F_NO_INTERRUPT`, meaningful without EVENT_IDX.
const NO_INTERRUPT: u16 = 1;

/// A queue as its device serves it.
///
/// ```text
/// drain_kick()
/// loop:  while let Some(chain) = next_chain()? { serve; complete(chain, written)? }
///        notify_if_needed()?
///        if !enable_notification()? { break }
/// ```
///
/// A device that gets a [`QueueFault`] hands it to
/// [`DeviceControl::needs_reset`](super::DeviceControl::needs_reset) and leaves its queues alone
/// until it is reset. Nothing here allocates once as many chains have been in flight as will be.
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    memory: Arc<DeviceMemory>,
    kick: EventFd,
    interrupt: QueueInterrupt,
    indirect: bool,
    /// The driver's index in the available ring, as last seen.
    available: u16,
    /// Chains taken and not yet completed.
    in_flight: u16,
    /// Chains completed since the last look at whether to interrupt.
    completed: u16,
    /// Lists of chains that are done, for chains to come.
    spare: Vec<Vec<Buffer>>,
}

impl Virtqueue {
    /// Serves `active` in `memory` with the `features` that were negotiated.
    pub fn new(active: ActiveQueue, memory: Arc<DeviceMemory>, features: u64) -> Self {
        let ActiveQueue { index, mut queue, kick, interrupt } = active;
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        let available = queue.next_avail();
        let indirect = features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0;
        Self {
            index,
            queue,
            memory,
            kick,
            interrupt,
            indirect,
            available,
            in_flight: 0,
            completed: 0,
            spare: Vec::new(),
        }
    }

    /// Its index in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Descriptors it has: no more chains than this are ever in flight.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Readable when the driver notified the device.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Forgets the notifications so far. Spurious ones are harmless.
    pub fn drain_kick(&self) {
        // Fails only where there was none.
        let _ = self.kick.read();
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// If the driver broke a rule.
    pub fn next_chain(&mut self) -> Result<Option<Chain>, QueueFault> {
        if !self.has_more()? {
            return Ok(None);
        }
        let (next, size) = (self.queue.next_avail(), self.queue.size());
        if self.in_flight >= size {
            return Err(self.fault(self.queue.avail_ring(), FaultReason::InFlight(size)));
        }
        let entry = self.queue.avail_ring().wrapping_add(4 + 2 * u64::from(next % size));
        let head = self.load(entry, Ordering::Relaxed)?;
        let walk = Walk {
            memory: &self.memory,
            queue: self.index,
            table: self.queue.desc_table(),
            size,
            indirect: self.indirect,
        };
        let chain = walk.chain(head, self.spare.pop().unwrap_or_default())?;
        self.queue.set_next_avail(next.wrapping_add(1));
        self.in_flight += 1;
        Ok(Some(chain))
    }

    /// Gives a request back, into which the device wrote `written` bytes.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), QueueFault> {
        self.complete_all([(chain, written)])
    }

    /// Gives several requests back, each with the bytes written into it, so that the driver sees all
    /// of them at once (VIRTIO 1.2, section 5.1.6.4, asks that of the buffers of one packet).
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete_all(
        &mut self,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), QueueFault> {
        let ring = self.queue.used_ring();
        let mut next = self.queue.next_used();
        for (Chain { head, mut buffers, .. }, written) in chains {
            let entry = ring.wrapping_add(4 + 8 * u64::from(next % self.queue.size()));
            let used = u64::from(written) << 32 | u64::from(head);
            self.memory
                .put(used.to_le(), GuestAddress(entry))
                .map_err(|_| self.fault(entry, FaultReason::Ring))?;
            next = next.wrapping_add(1);
            self.in_flight = self.in_flight.saturating_sub(1);
            self.completed = self.completed.saturating_add(1);
            buffers.clear();
            self.spare.push(buffers);
        }
        self.queue.set_next_used(next);
        self.store(ring.wrapping_add(2), next, Ordering::Release)
    }

    /// Interrupts the driver if it wants to hear of the chains completed since the last call.
    ///
    /// # Errors
    /// If the available ring cannot be read.
    pub fn notify_if_needed(&mut self) -> Result<(), QueueFault> {
        let completed = std::mem::take(&mut self.completed);
        if completed == 0 {
            return Ok(());
        }
        let ring = self.queue.avail_ring();
        let event_idx = self.queue.event_idx_enabled();
        // Section 2.7.7: `used_event` stands behind the available ring, the flags before it.
        let wish = if event_idx { 4 + 2 * u64::from(self.queue.size()) } else { 0 };
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = self.load(ring.wrapping_add(wish), Ordering::Relaxed)?;
        let wanted = if event_idx {
            // The entry of that index is among those just used.
            self.queue.next_used().wrapping_sub(wish).wrapping_sub(1) < completed
        } else {
            wish & NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt.trigger();
        }
        Ok(())
    }

    /// The loop of devices whose requests are done at once: `each` gets every chain and says how many
    /// bytes it wrote. Ends when there are no more chains, or after as many as the queue has
    /// descriptors; then the thread is woken again, so that a busy driver does not keep it from
    /// others.
    ///
    /// # Errors
    /// If the driver broke a rule.
    pub fn serve(
        &mut self,
        mut each: impl FnMut(&Chain, &DeviceMemory) -> Result<u32, QueueFault>,
    ) -> Result<(), QueueFault> {
        self.drain_kick();
        for _ in 0..self.size() {
            let Some(chain) = self.next_chain()? else {
                self.notify_if_needed()?;
                if self.enable_notification()? {
                    continue;
                }
                return Ok(());
            };
            let written = each(&chain, &self.memory)?;
            self.complete(chain, written)?;
        }
        self.notify_if_needed()?;
        self.wake_again();
        Ok(())
    }

    /// Wakes whoever waits for [`Virtqueue::kick`], as the driver does.
    pub fn wake_again(&self) {
        // Fails where the counter is full; then it is awake.
        let _ = self.kick.write(1);
    }

    /// Tells a driver without EVENT_IDX that there is no need to notify: the queue is being looked at. One
    /// with EVENT_IDX notifies only where it was last asked to.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn disable_notification(&mut self) -> Result<(), QueueFault> {
        self.queue
            .disable_notification(&*self.memory)
            .map_err(|_| self.fault(self.queue.used_ring(), FaultReason::Ring))
    }

    /// Asks for a notification with the next chain. `true`: a chain came before the driver could
    /// know; there may be no notification for it.
    ///
    /// # Errors
    /// If the rings cannot be accessed.
    pub fn enable_notification(&mut self) -> Result<bool, QueueFault> {
        self.queue
            .enable_notification(&*self.memory)
            .map_err(|_| self.fault(self.queue.used_ring(), FaultReason::Ring))
    }

    /// Whether there is a request.
    ///
    /// # Errors
    /// If the driver broke a rule.
    pub fn has_more(&mut self) -> Result<bool, QueueFault> {
        Ok(self.queue.next_avail() != self.available || self.look_for_more()?)
    }

    /// Reads the available index; says whether there are new chains.
    fn look_for_more(&mut self) -> Result<bool, QueueFault> {
        let ring = self.queue.avail_ring();
        let index = self.load(ring.wrapping_add(2), Ordering::Acquire)?;
        let (by, size) = (index.wrapping_sub(self.queue.next_avail()), self.queue.size());
        if by > size {
            return Err(self.fault(ring, FaultReason::AvailableIndex { by, size }));
        }
        self.available = index;
        Ok(by > 0)
    }

    /// Two bytes of a ring.
    fn load(&self, address: u64, order: Ordering) -> Result<u16, QueueFault> {
        let at = GuestAddress(address);
        let loaded = match self.memory.piece(at, 2) {
            Some(piece) => piece.load(0, order).map_err(GuestMemoryError::from),
            None => self.memory.load(at, order),
        };
        loaded.map(u16::from_le).map_err(|_| self.fault(address, FaultReason::Ring))
    }

    fn store(&self, address: u64, value: u16, order: Ordering) -> Result<(), QueueFault> {
        let at = GuestAddress(address);
        let stored = match self.memory.piece(at, 2) {
            Some(piece) => piece.store(value.to_le(), 0, order).map_err(GuestMemoryError::from),
            None => self.memory.store(value.to_le(), at, order),
        };
        stored.map_err(|_| self.fault(address, FaultReason::Ring))
    }

    fn fault(&self, address: u64, reason: FaultReason) -> QueueFault {
        QueueFault { queue: self.index, address, reason }
    }
}

#[cfg(test)]
mod tests;
