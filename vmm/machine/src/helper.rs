//! A thread that does for vCPUs what the filters of their threads forbid: it opens files, connects, and
//! starts threads.

use std::io;
use std::sync::mpsc::{self, Sender};

use casemate_devices::thread;
use casemate_sandbox::{Sandbox, Thread};

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends with the value.
#[derive(Debug)]
pub(crate) struct Helper(Sender<Job>);

impl Helper {
    /// Starts the thread, in `sandbox`.
    ///
    /// # Errors
    /// If the host has no more threads, or refuses the sandbox.
    pub(crate) fn start(sandbox: &Sandbox) -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let sandbox = sandbox.clone();
        let setup = move || Ok(sandbox.enter(Thread::Quote)?);
        thread::spawn("helper", setup, move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Self(sender))
    }

    /// Does `job` on the thread, and waits for it; `None` if the thread is gone.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = mpsc::sync_channel(1);
        let job = move || {
            // The caller waits for it.
            let _ = sender.send(job());
        };
        self.0.send(Box::new(job)).ok()?;
        done.recv().ok()
    }
}

/// Does `job` with a helper's rights, or without a helper at once.
pub(crate) fn call<T: Send + 'static>(
    helper: Option<&Helper>,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match helper {
        Some(helper) => helper.call(job),
        None => Some(job()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_done_on_the_helper_in_order() {
        let helper = Helper::start(&Sandbox::off()).unwrap();
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(helper.call(name).flatten().as_deref(), Some("helper"));
        let sum: u32 = (0..100).filter_map(|number| helper.call(move || number)).sum();
        assert_eq!(sum, 4950);
    }
}
