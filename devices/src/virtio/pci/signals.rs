//! What the device says to its driver: interrupts, the ISR status, the need of a reset.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::pci::Msix;
use crate::virtio::Transport;

/// No vector (VIRTIO 1.2, section 4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Shared by the vCPUs, which program it, and the device's workers, which raise interrupts.
pub(super) struct Signals {
    pub(super) msix: Msix,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    generation: AtomicU8,
    needs_reset: AtomicBool,
}

impl Signals {
    pub(super) fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix,
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Back to how it began, but for MSI-X, which belongs to the bus.
    pub(super) fn reset(&self) {
        self.isr.store(0, Ordering::Release);
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.needs_reset.store(false, Ordering::Release);
    }

    /// The ISR status, which reading clears.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Changes with the device's configuration (section 2.5.3).
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the driver has to reset the device.
    pub(super) fn reset_is_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets it; a vector that does not exist becomes none, for the driver to read (section
    /// 4.1.5.1.2.2).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    /// The vector of a queue.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets it, as [`Signals::set_config_vector`] does.
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(of_queue) = self.queue_vectors.get(usize::from(queue)) {
            of_queue.store(self.existing(vector), Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.len() { vector } else { NO_VECTOR }
    }
}

impl Transport for Signals {
    fn queue_used(&self, queue: u16) {
        if self.msix.enabled() {
            self.msix.trigger(self.queue_vector(queue));
        } else {
            self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }
    }

    fn queue_notifier(&self, queue: u16) -> Option<EventFd> {
        self.msix.notifier(self.queue_vector(queue))
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.msix.trigger(self.config_vector());
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }
}
