//! The driver's side, for the tests of devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, IommuMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, DeviceControl, QueueInterrupt, Transport, VirtioDevice};
use crate::memory::{DeviceMemory, SharedPages};

/// Features a Linux driver takes from any transport: RING_INDIRECT_DESC, RING_EVENT_IDX, VERSION_1.
pub(crate) const RING_FEATURES: u64 = 1 << 28 | 1 << 29 | 1 << 32;

/// Guest memory of a test: 16 MiB from 0 on, all shared.
pub(crate) fn memory() -> Arc<DeviceMemory> {
    let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let memory: DeviceMemory =
        IommuMemory::new(backend, SharedPages::new(GuestAddress(16 << 20)), true, ());
    memory.iommu().share(GuestAddress(0), 16 << 20).unwrap();
    Arc::new(memory)
}

/// A transport that counts what the device told it.
#[derive(Default)]
pub(crate) struct MockTransport {
    pub(crate) interrupts: AtomicU64,
    pub(crate) config_changes: AtomicU64,
    pub(crate) needs_reset: AtomicBool,
}

impl Transport for MockTransport {
    fn queue_used(&self, _: u16) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
    }

    fn queue_notifier(&self, _: u16) -> Option<EventFd> {
        None
    }

    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}

/// One descriptor to be: address, length, whether the device writes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// One queue, from the driver's side. Its rings take the first 64 KiB at `base`; what lies behind
/// belongs to the test.
pub(crate) struct MockQueue {
    pub(crate) memory: Arc<DeviceMemory>,
    pub(crate) size: u16,
    pub(crate) kick: EventFd,
    base: u64,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl MockQueue {
    pub(crate) fn new(memory: &Arc<DeviceMemory>, base: u64, size: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            size,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            base,
            next_descriptor: 0,
            available: 0,
            used: 0,
        }
    }

    pub(crate) fn table(&self) -> u64 {
        self.base
    }

    pub(crate) fn available_ring(&self) -> u64 {
        self.base + 0x4000
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + 0x8000
    }

    /// What the transport would hand to the device.
    pub(crate) fn active(&self, index: u16, transport: &Arc<MockTransport>) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        queue.try_set_desc_table_address(GuestAddress(self.table())).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.available_ring())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used_ring())).unwrap();
        queue.set_ready(true);
        let transport: Arc<dyn Transport> = transport.clone();
        ActiveQueue {
            index,
            queue,
            kick: self.kick.try_clone().unwrap(),
            interrupt: QueueInterrupt::new(transport, index),
        }
    }

    /// Writes descriptor `index`, whatever it says.
    pub(crate) fn set(&self, index: u16, descriptor: Descriptor) {
        write_descriptor(&self.memory, self.table() + 16 * u64::from(index), descriptor);
    }

    /// Offers a chain of readable, then writable `(address, length)` buffers; gives its head.
    pub(crate) fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let count = readable.len() + writable.len();
        let head = self.next_descriptor;
        for (at, &(address, len)) in readable.iter().chain(writable).enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let write = if at < readable.len() { 0 } else { WRITE };
            let next = if at + 1 < count { NEXT } else { 0 };
            let flags = write | next;
            self.set(index, Descriptor { address, len, flags, next: self.next_descriptor });
        }
        self.offer(head);
        head
    }

    /// Puts a head into the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.set_available(self.available.wrapping_add(1));
    }

    /// Sets the available index, right or wrong.
    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        let address = GuestAddress(self.available_ring() + 2);
        self.memory.store(index, address, Ordering::Release).unwrap();
    }

    /// Asks for an interrupt with the next used buffer (EVENT_IDX).
    pub(crate) fn want_interrupt(&self) {
        let address = self.available_ring() + 4 + 2 * u64::from(self.size);
        self.memory.store(self.used, GuestAddress(address), Ordering::SeqCst).unwrap();
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next used `(head, written)`, if there is one.
    pub(crate) fn poll_used(&mut self) -> Option<(u16, u32)> {
        let ring = self.used_ring();
        let index: u16 = self.memory.load(GuestAddress(ring + 2), Ordering::Acquire).unwrap();
        if index == self.used {
            return None;
        }
        let entry = ring + 4 + 8 * u64::from(self.used % self.size);
        let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(entry)).unwrap();
        self.used = self.used.wrapping_add(1);
        Some((u16::try_from(head).unwrap(), written))
    }

    /// Waits for the next used `(head, written)`.
    pub(crate) fn used(&mut self) -> (u16, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.poll_used() {
                return used;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "the device does not answer");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Writes a descriptor anywhere (into an indirect table).
pub(crate) fn write_descriptor(memory: &DeviceMemory, address: u64, descriptor: Descriptor) {
    let Descriptor { address: buffer, len, flags, next } = descriptor;
    let bits = u128::from(buffer)
        | u128::from(len) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    memory.write_obj(bits, GuestAddress(address)).unwrap();
}

/// Activates `device` with the queues given, all others disabled.
pub(crate) fn activate(
    device: &mut dyn VirtioDevice,
    queues: &[(u16, &MockQueue)],
    features: u64,
) -> (std::io::Result<()>, Arc<MockTransport>) {
    let transport = Arc::new(MockTransport::default());
    let memory = Arc::clone(&queues.first().unwrap().1.memory);
    let mut active: Vec<_> = device.queue_sizes().iter().map(|_| None).collect();
    for (index, queue) in queues {
        active[usize::from(*index)] = Some(queue.active(*index, &transport));
    }
    let control = DeviceControl::new(transport.clone(), device.kind());
    let result = device.activate(Activation { memory, features, queues: active, control });
    (result, transport)
}

/// Waits until `condition` holds.
pub(crate) fn wait(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}
