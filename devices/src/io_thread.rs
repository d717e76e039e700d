//! Threads on which devices serve their queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint};

pub use event_manager::SubscriberId;

/// What an [`IoThread`] runs: a device's worker.
pub type Worker = Box<dyn MutEventSubscriber + Send>;

/// Events taken from the kernel at once. Few file descriptors are ever ready together.
const EVENTS: usize = 32;

/// A named thread that waits for events on behalf of any number of workers. It ends when its last
/// handle is dropped.
#[derive(Clone)]
pub struct IoThread(Arc<Handle>);

struct Handle {
    endpoint: RemoteEndpoint<Worker>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread called `name`. `setup` runs on it first (the sandbox's seccomp filter).
    ///
    /// # Errors
    /// If the thread or its event loop could not be made, or `setup` failed.
    pub fn spawn(
        name: &str,
        setup: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let mut manager =
            EventManager::<Worker>::new_with_capacity(EVENTS).map_err(io::Error::other)?;
        let endpoint = manager.remote_endpoint();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = crate::thread::spawn(name, setup, move || {
            while !stopped.load(Ordering::Acquire) {
                if let Err(error) = manager.run() {
                    tracing::error!(%error, "an I/O thread cannot wait for events and ends");
                    break;
                }
            }
        })?;
        Ok(Self(Arc::new(Handle { endpoint, stop, thread: Some(thread) })))
    }

    /// Adds a worker, whose `init` is called on the thread before this returns. Not from the thread
    /// itself.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn add(&self, worker: Worker) -> io::Result<SubscriberId> {
        self.0
            .endpoint
            .call_blocking(move |workers| {
                Ok::<_, event_manager::Error>(workers.add_subscriber(worker))
            })
            .map_err(io::Error::other)
    }

    /// Takes a worker back: when this returns, it no longer runs. Not from the thread itself.
    ///
    /// # Errors
    /// If there is no such worker, or the thread has ended.
    pub fn remove(&self, id: SubscriberId) -> io::Result<Worker> {
        self.0
            .endpoint
            .call_blocking(move |workers| workers.remove_subscriber(id))
            .map_err(io::Error::other)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Fails only if the loop has already ended.
        let _ = self.endpoint.kick();
        let Some(thread) = self.thread.take() else { return };
        // A worker may hold the last handle; then the thread itself is here, about to end.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Echo(EventFd, Sender<u64>);

    impl MutEventSubscriber for Echo {
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.1.send(self.0.read().unwrap()).unwrap();
        }
    }

    fn echo() -> (Worker, EventFd, Receiver<u64>) {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let (sender, receiver) = channel();
        (Box::new(Echo(kick.try_clone().unwrap(), sender)), kick, receiver)
    }

    #[test]
    fn workers_run_until_they_are_removed() {
        let thread = IoThread::spawn("echo", || Ok(())).unwrap();
        let (worker, kick, echoes) = echo();
        let id = thread.add(worker).unwrap();
        kick.write(7).unwrap();
        assert_eq!(echoes.recv_timeout(Duration::from_secs(10)).unwrap(), 7);
        let worker = thread.remove(id).unwrap();
        kick.write(1).unwrap();
        assert!(echoes.recv_timeout(Duration::from_millis(50)).is_err());
        assert!(thread.remove(id).is_err());
        let id = thread.add(worker).unwrap();
        assert_eq!(echoes.recv_timeout(Duration::from_secs(10)).unwrap(), 1);
        thread.remove(id).unwrap();
    }

    #[test]
    fn the_thread_ends_with_its_last_handle() {
        let thread = IoThread::spawn("ends", || Ok(())).unwrap();
        let (worker, _kick, echoes) = echo();
        thread.clone().add(worker).unwrap();
        drop(thread);
        // The worker went with the thread, and its sender with the worker.
        assert!(echoes.recv_timeout(Duration::from_secs(10)).is_err());
    }

    #[test]
    fn a_failed_setup_is_the_spawners_error() {
        let error = IoThread::spawn("refused", || Err(io::Error::other("no sandbox"))).err();
        assert_eq!(error.unwrap().to_string(), "no sandbox");
    }
}
