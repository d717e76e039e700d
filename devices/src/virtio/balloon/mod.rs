//! The memory balloon (VIRTIO 1.2, section 5.5), with free page reporting: the guest gives memory
//! back to the host, on request or by itself.
//!
//! Only for guests whose memory the host sees anyway: a confidential guest's pages are not the
//! host's to drop, and the configuration refuses the combination.

mod request;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestAddress;

use super::{Activation, DeviceControl, DeviceKind, VirtioDevice, read_fields};
use crate::io_thread::{IoThread, SubscriberId};
use worker::Worker;

/// Bytes of a page as the balloon counts them, whatever the guest's are (section 5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// Inflate, deflate and reporting queue. Section 5.5.2 has two more before the last; without their
/// features, Linux and QEMU count on without a gap.
const QUEUE_SIZES: [u16; 3] = [128, 128, 128];

/// The guest may take pages back when it is out of memory (section 5.5.3).
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// Free page reporting.
const PAGE_REPORTING: u64 = 1 << 5;

/// Offset of `actual` in the configuration space, after `num_pages` (section 5.5.4).
const ACTUAL: u64 = 4;

/// Takes memory that the guest does not need.
pub trait Discard: Send + Sync {
    /// Gives `len` bytes at `start` (whole pages of [`PAGE_SIZE`], all in guest memory) back to the
    /// host's kernel. The guest may use them again at any time, and then finds zeroes.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()>;
}

/// What device and handle share.
#[derive(Default)]
struct Shared {
    target: AtomicU32,
    actual: AtomicU32,
    /// While the driver is ready.
    control: Mutex<Option<DeviceControl>>,
}

/// Changes the size of a balloon, from any thread.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest for `pages` pages in all. It gives what it can, over time.
    pub fn set_target(&self, pages: u32) {
        self.0.target.store(pages, Ordering::Release);
        let control = self.0.control.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = &*control {
            control.config_changed();
        }
    }

    /// Pages in the balloon, as the guest says.
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::Acquire)
    }
}

/// The balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    memory: Arc<dyn Discard>,
    thread: IoThread,
    worker: Option<SubscriberId>,
}

impl Balloon {
    /// An empty balloon, whose pages go back through `memory`.
    pub fn new(memory: Arc<dyn Discard>, thread: IoThread) -> Self {
        Self { shared: Arc::default(), memory, thread, worker: None }
    }

    /// The handle that changes its size.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }

    fn set_control(&self, control: Option<DeviceControl>) {
        *self.shared.control.lock().unwrap_or_else(PoisonError::into_inner) = control;
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        DEFLATE_ON_OOM | PAGE_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.shared.target.load(Ordering::Acquire).to_le_bytes();
        let actual = self.shared.actual.load(Ordering::Acquire).to_le_bytes();
        read_fields([target, actual].as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, &[a, b, c, d]) = (offset, data) {
            self.shared.actual.store(u32::from_le_bytes([a, b, c, d]), Ordering::Release);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let (inflate, deflate) = (activation.take_queue(0)?, activation.take_queue(1)?);
        // Absent where the driver does not report free pages.
        let report = activation.take_queue(2).ok();
        let memory = Arc::clone(&self.memory);
        let control = activation.control;
        self.set_control(Some(control.clone()));
        let worker = Worker::new(inflate, deflate, report, memory, control);
        self.worker = Some(self.thread.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.set_control(None);
        self.shared.actual.store(0, Ordering::Release);
        if let Some(worker) = self.worker.take() {
            // Fails only if the thread has ended, and the worker with it.
            let _ = self.thread.remove(worker);
        }
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
