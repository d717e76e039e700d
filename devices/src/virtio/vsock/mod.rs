//! Sockets between host and guest (VIRTIO 1.2, section 5.10). The host's side is Unix sockets, in
//! the way that Firecracker's users know:
//!
//! * a process connects to the main socket, says `CONNECT <port>\n`, and reads `OK <port>\n` when a
//!   process in the guest listens on that port; the stream is then theirs;
//! * a connection that the guest makes to the host's port P goes to the socket `<main socket>_P`.
//!
//! [`KernelVsock`] is the same device with the host kernel's own sockets (AF_VSOCK) in their place.

mod budget;
mod connection;
mod door;
mod greeting;
mod kernel;
pub mod packet;
mod worker;

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::{Activation, DeviceKind, VirtioDevice, read_fields};
use crate::io_thread::{IoThread, SubscriberId};
use door::Door;
pub use kernel::KernelVsock;
use worker::Worker;

/// Receive, transmit and event queue (section 5.10.2).
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// The socket device.
pub struct Vsock {
    guest_cid: u64,
    socket: PathBuf,
    listener: UnixListener,
    thread: IoThread,
    worker: Option<SubscriberId>,
}

impl Vsock {
    /// A device for the guest with context identifier `guest_cid`, whose main socket is made at
    /// `socket`. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// If the socket cannot be made: somebody listens there, something else is there, or the folder
    /// does not allow it.
    pub fn new(guest_cid: u32, socket: &Path, thread: IoThread) -> io::Result<Self> {
        if socket.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
            match worker::connect(socket) {
                // Somebody listens, but does not accept at the moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(_) => std::fs::remove_file(socket)?,
            }
        }
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let guest_cid = u64::from(guest_cid);
        Ok(Self { guest_cid, socket: socket.to_owned(), listener, thread, worker: None })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let worker = Worker::new(
            self.guest_cid,
            self.socket.clone(),
            Door::new(self.listener.try_clone()?)?,
            activation.take_queue(0)?,
            activation.take_queue(1)?,
            activation.control,
        );
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

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests;
