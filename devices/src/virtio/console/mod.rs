//! The console (VIRTIO 1.2, section 5.3): one port, between an input and an output of the host.

mod worker;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Activation, DeviceControl, DeviceKind, VirtioDevice, read_fields};
use crate::io_thread::{IoThread, SubscriberId};
use crate::outlet::Outlet;
use worker::Worker;

/// Receive and transmit queue of port 0 (section 5.3.2).
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// The configuration has the size of the terminal (section 5.3.3).
const SIZE: u64 = 1 << 0;

/// What device and handle share.
#[derive(Default)]
struct Shared {
    /// Columns, and rows in the upper half: as the configuration space has them.
    size: AtomicU32,
    /// While the driver is ready.
    control: Mutex<Option<DeviceControl>>,
}

/// Tells the guest of the terminal's size, from any thread.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Shared>);

impl ConsoleHandle {
    /// The terminal has this size from now on.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.size.store(u32::from(rows) << 16 | u32::from(columns), Ordering::Release);
        let control = self.0.control.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(control) = &*control {
            control.config_changed();
        }
    }
}

/// The console.
pub struct Console {
    shared: Arc<Shared>,
    input: Option<File>,
    output: Outlet,
    thread: IoThread,
    worker: Option<SubscriberId>,
}

impl Console {
    /// A console that gives the guest the bytes of `input` and writes the guest's to `output`. The
    /// input may be a terminal, pipe or socket, blocking or not. One that cannot be waited for (a
    /// file, `/dev/null`) stays unread.
    #[must_use]
    pub fn new(input: Option<OwnedFd>, output: Outlet, thread: IoThread) -> Self {
        let input = input.map(File::from);
        Self { shared: Arc::default(), input, output, thread, worker: None }
    }

    /// The handle that changes its size.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.shared))
    }

    fn set_control(&self, control: Option<DeviceControl>) {
        *self.shared.control.lock().unwrap_or_else(PoisonError::into_inner) = control;
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        SIZE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(&self.shared.size.load(Ordering::Acquire).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let (receive, transmit) = (activation.take_queue(0)?, activation.take_queue(1)?);
        let input = self.input.as_ref().map(File::try_clone).transpose()?;
        let output = self.output.clone();
        let control = activation.control;
        self.set_control(Some(control.clone()));
        let worker = Worker::new(receive, transmit, input, output, control);
        self.worker = Some(self.thread.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.set_control(None);
        if let Some(worker) = self.worker.take() {
            // Fails only if the thread has ended, and the worker with it.
            let _ = self.thread.remove(worker);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
