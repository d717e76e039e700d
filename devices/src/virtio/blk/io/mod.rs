//! How requests reach the image: through io_uring, or plain system calls where the host forbids
//! that. All of the disk's unsafe code is in this module.
//!
//! Data goes straight between guest memory and the image. A `Job` owns what makes that sound: the
//! addresses it hands to the kernel, and the guest memory that keeps them mapped. The ring keeps
//! every job until the kernel has answered it.

mod image;
mod job;
mod lock;
mod ring;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::Chain;
pub use image::{Image, ImageError};
pub(super) use job::{Attempt, Job};
pub use lock::Owner;
use ring::Ring;

/// A request that was carried out, or failed.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) chain: Chain,
    /// What was attempted.
    pub(super) attempt: Attempt,
    pub(super) result: io::Result<()>,
}

/// Carries out the requests of one queue, in no order.
pub(super) struct Engine {
    image: Arc<Image>,
    ring: Option<Ring>,
    /// Whether the requests since the last [`Engine::submit`] were done at once.
    quick: bool,
    waiting: Vec<Job>,
    finished: Vec<Finished>,
}

impl Engine {
    /// An engine for up to `depth` requests at once; with io_uring if the host allows it.
    pub(super) fn new(image: &Arc<Image>, depth: u16) -> Self {
        let ring = Ring::new(image, depth)
            .inspect(|_| tracing::info!("disk requests go through io_uring"))
            .inspect_err(|error| {
                tracing::info!(%error, "no io_uring: disk requests are plain, blocking calls");
            })
            .ok();
        Self::with_ring(image, ring)
    }

    /// An engine of plain, blocking system calls.
    pub(super) fn plain(image: &Arc<Image>) -> Self {
        Self::with_ring(image, None)
    }

    fn with_ring(image: &Arc<Image>, ring: Option<Ring>) -> Self {
        let image = Arc::clone(image);
        Self { image, ring, quick: true, waiting: Vec::new(), finished: Vec::new() }
    }

    /// Becomes readable when requests finished on their own time; `None` where all finish within
    /// [`Engine::submit`].
    pub(super) fn event(&self) -> Option<&EventFd> {
        self.ring.as_ref().map(Ring::event)
    }

    /// Whether no request is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.ring.as_ref().is_none_or(Ring::is_idle)
    }

    /// Takes a job, which is done now, or to be started by [`Engine::submit`]. Never more at once
    /// than the depth.
    pub(super) fn add(&mut self, mut job: Job) -> Option<Finished> {
        // As long as data is there to be copied, copying it is the least work.
        self.quick = self.quick && job.try_at_once(&self.image);
        if self.quick {
            return Some(job.finish(Ok(())));
        }
        self.waiting.push(job);
        None
    }

    /// Starts what was added and is not done, all with one system call, and collects what has
    /// finished.
    ///
    /// # Errors
    /// If the host refuses to take requests at all.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.quick = true;
        let Some(ring) = &mut self.ring else {
            self.finished.extend(self.waiting.drain(..).map(|job| job.run(&self.image)));
            return Ok(());
        };
        for job in self.waiting.drain(..) {
            if job.must_block() {
                self.finished.push(job.run(&self.image));
            } else {
                ring.start(job)?;
            }
        }
        ring.submit(&mut self.finished)
    }

    /// The next request that has finished.
    pub(super) fn next_finished(&mut self) -> Option<Finished> {
        self.finished.pop()
    }

    /// Forgets all requests, those that the kernel has begun once it is done with them.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        if let Some(ring) = &mut self.ring {
            ring.drain();
        }
        self.finished.clear();
    }
}
