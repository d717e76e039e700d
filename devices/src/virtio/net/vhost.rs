//! A pair of queues that the host's kernel serves (/dev/vhost-net).

use std::fs::File;
use std::io;

use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net as Handle;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::super::ActiveQueue;
use super::super::vhost::{Memory, Vhost, refused};
use super::link::Link;

/// One instance of vhost-net.
pub(super) struct VhostNet {
    vhost: Vhost<Handle<Memory>>,
    started: bool,
}

impl VhostNet {
    pub(super) fn open() -> Result<Self, vhost::Error> {
        // Offloads are the tap's.
        let vhost = Vhost::open(Handle::new, 1 << VIRTIO_NET_F_MRG_RXBUF)?;
        Ok(Self { vhost, started: false })
    }

    /// Whether it can serve queues with these features.
    pub(super) fn knows(&self, features: u64) -> bool {
        self.vhost.knows(features)
    }

    /// Hands both queues of a pair to the kernel, which moves packets to and from `link`, and
    /// complains to `errors`.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        pair: [&ActiveQueue; 2],
        errors: &EventFd,
        link: &dyn Link,
    ) -> io::Result<()> {
        self.vhost.set_queues(memory, features, pair, errors)?;
        let tap = File::from(link.as_fd().try_clone_to_owned()?);
        self.started = true;
        for index in 0..2 {
            self.vhost.handle.set_backend(index, Some(&tap)).map_err(refused)?;
        }
        Ok(())
    }

    /// Takes the queues back. When this returns, the kernel no longer touches guest memory.
    pub(super) fn stop(&mut self) {
        if !std::mem::take(&mut self.started) {
            return;
        }
        for index in 0..2 {
            if let Err(error) = self.vhost.handle.set_backend(index, None) {
                tracing::error!(%error, "cannot take a queue back from vhost-net");
            }
        }
    }
}
