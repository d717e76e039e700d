//! The entropy device (VIRTIO 1.2, section 5.4): random bytes from the host's kernel.

mod worker;

use std::fs::File;
use std::io;

use super::{Activation, DeviceKind, VirtioDevice};
use crate::io_thread::{IoThread, SubscriberId};
use worker::Worker;

/// The one queue, on which the driver offers empty buffers (section 5.4.2).
const QUEUE_SIZES: [u16; 1] = [64];

/// The entropy device.
pub struct Rng {
    source: File,
    thread: IoThread,
    worker: Option<SubscriberId>,
}

impl Rng {
    /// A device that takes its bytes from `/dev/urandom`: an open file goes on to work inside of a
    /// sandbox, and the kernel copies from it straight into the guest.
    ///
    /// # Errors
    /// If `/dev/urandom` cannot be opened.
    pub fn new(thread: IoThread) -> io::Result<Self> {
        Ok(Self { source: File::open("/dev/urandom")?, thread, worker: None })
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let queue = activation.take_queue(0)?;
        let worker = Worker::new(self.source.try_clone()?, queue, activation.control);
        self.worker = Some(self.thread.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            // Fails only if the thread has ended, and the worker with it.
            let _ = self.thread.remove(worker);
        }
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use vm_memory::{Bytes, GuestAddress};

    use super::worker::MOST_BYTES;
    use super::*;
    use crate::virtio::testing::{MockQueue, RING_FEATURES, activate, memory, wait};

    const DATA: u64 = 0x20_0000;

    #[test]
    fn buffers_fill_with_random_bytes() {
        let memory = memory();
        let mut rng = Rng::new(IoThread::spawn("rng", || Ok(())).unwrap()).unwrap();
        for _ in 0..3 {
            let mut queue = MockQueue::new(&memory, 0x10_0000, 64);
            memory.write_slice(&[0; 64], GuestAddress(queue.used_ring())).unwrap();
            let (result, transport) = activate(&mut rng, &[(0, &queue)], RING_FEATURES);
            result.unwrap();
            queue.want_interrupt();
            let head = queue.add(&[], &[(DATA, 32), (DATA + 0x1000, 32)]);
            queue.kick();
            assert_eq!(queue.used(), (head, 64));
            wait("an interrupt", || transport.interrupts.load(SeqCst) == 1);
            let mut bytes = [[0; 32]; 2];
            memory.read_slice(&mut bytes[0], GuestAddress(DATA)).unwrap();
            memory.read_slice(&mut bytes[1], GuestAddress(DATA + 0x1000)).unwrap();
            assert!(bytes[0] != bytes[1] && bytes[0] != [0; 32] && bytes[1] != [0; 32]);
            rng.reset();
        }
    }

    #[test]
    fn a_huge_buffer_gets_a_part() {
        let memory = memory();
        let mut rng = Rng::new(IoThread::spawn("rng", || Ok(())).unwrap()).unwrap();
        let mut queue = MockQueue::new(&memory, 0x10_0000, 64);
        let (result, _) = activate(&mut rng, &[(0, &queue)], RING_FEATURES);
        result.unwrap();
        let head = queue.add(&[], &[(DATA, 8 << 20)]);
        queue.kick();
        assert_eq!(queue.used(), (head, MOST_BYTES));
    }

    #[test]
    fn readable_buffers_and_broken_chains_ask_for_a_reset() {
        let memory = memory();
        let mut rng = Rng::new(IoThread::spawn("rng", || Ok(())).unwrap()).unwrap();
        for (readable, writable) in [(&[(DATA, 4)][..], &[][..]), (&[], &[(u64::MAX, 4)])] {
            let mut queue = MockQueue::new(&memory, 0x10_0000, 64);
            let (result, transport) = activate(&mut rng, &[(0, &queue)], RING_FEATURES);
            result.unwrap();
            queue.add(readable, writable);
            queue.kick();
            wait("the need of a reset", || transport.needs_reset.load(SeqCst));
            queue.kick();
            rng.reset();
            memory.write_slice(&[0; 4], GuestAddress(queue.available_ring())).unwrap();
        }
    }
}
