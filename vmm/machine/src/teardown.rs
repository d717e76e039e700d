//! The end of a guest's threads and devices, within a limit.
//!
//! A device may wait for a file that its file system does not answer for, or a vCPU for such a device.
//! The process ends all the same, and names the threads that it left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use casemate_devices::thread;
use casemate_sandbox::{Sandbox, Thread};
use rustix::fs::{Dir, Mode, OFlags, openat};

/// How long a guest may take to end.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// Name of the thread that waits for the others.
const OWN: &str = "teardown";

/// Threads of this process.
const FOLDER: &str = "/proc/self/task";

/// Threads of this process, by number.
#[derive(Default)]
pub(crate) struct Tasks(BTreeSet<u32>);

impl Tasks {
    /// Those there are now.
    pub(crate) fn now() -> Self {
        let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
        Self(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Those that have begun since, as `folder` shows them.
    pub(crate) fn begun(&self, folder: Option<Dir>) -> Begun {
        let mut begun = Begun { names: BTreeMap::new(), folder };
        let new = begun.numbers().into_iter().filter(|task| !self.0.contains(task));
        let named = new.filter_map(|task| Some((task, begun.name(task)?)));
        begun.names = named.filter(|(_, name)| name != OWN).collect();
        begun
    }
}

/// The directory of this process's threads, which is to be opened while paths lead there.
pub(crate) fn folder() -> Option<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(FOLDER, flags, Mode::empty()).and_then(Dir::new).ok()
}

/// Threads of a guest, by number, and the directory that shows which are left when no file can be
/// opened any more.
pub(crate) struct Begun {
    names: BTreeMap<u32, String>,
    folder: Option<Dir>,
}

impl Begun {
    /// Numbers of all threads.
    fn numbers(&mut self) -> Vec<u32> {
        let Some(folder) = &mut self.folder else { return Vec::new() };
        folder.rewind();
        folder.flatten().filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
    }

    fn name(&self, task: u32) -> Option<String> {
        let file = openat(
            self.folder.as_ref()?.fd().ok()?,
            format!("{task}/comm"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut name = String::new();
        fs::File::from(file.ok()?).read_to_string(&mut name).ok()?;
        Some(name.trim().to_owned())
    }

    /// Names of those that have not ended.
    fn left(mut self) -> Vec<String> {
        self.numbers().iter().filter_map(|task| self.names.remove(task)).collect()
    }
}

/// A thread that waits for the others. It starts before the guest does: later this process may start
/// none.
pub(crate) struct Teardown {
    work: Sender<Box<dyn FnOnce() + Send>>,
    done: Receiver<()>,
}

impl Teardown {
    /// Starts the thread, in `sandbox`.
    ///
    /// # Errors
    /// If the host has no more threads, or refuses the sandbox.
    pub(crate) fn start(sandbox: &Sandbox) -> io::Result<Self> {
        let (work, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ended, done) = mpsc::channel();
        let sandbox = sandbox.clone();
        let setup = move || Ok(sandbox.enter(Thread::Teardown)?);
        thread::spawn(OWN, setup, move || {
            if let Ok(end) = jobs.recv() {
                end();
                // Nobody listens any more only if the limit has passed.
                let _ = ended.send(());
            }
        })?;
        Ok(Self { work, done })
    }

    /// Runs `end`, but waits no longer than `limit` for it. Returns those of `begun` that are left then.
    pub(crate) fn within(
        self,
        limit: Duration,
        begun: Begun,
        end: impl FnOnce() + Send + 'static,
    ) -> Vec<String> {
        // Fails only if the thread is gone; then nothing waits for the others.
        let _ = self.work.send(Box::new(end));
        match self.done.recv_timeout(limit) {
            Err(mpsc::RecvTimeoutError::Timeout) => begun.left(),
            // Also after a panic, which has been reported by its own hook.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(limit: Duration, begun: Begun, end: impl FnOnce() + Send + 'static) -> Vec<String> {
        Teardown::start(&Sandbox::off()).unwrap().within(limit, begun, end)
    }

    #[test]
    fn end_in_time_leaves_nobody() {
        assert!(within(Duration::from_secs(60), Tasks::now().begun(folder()), || ()).is_empty());
    }

    #[test]
    fn thread_that_does_not_end_is_named() {
        let before = Tasks::now();
        let spawn = |name: &str, held: Receiver<()>| {
            std::thread::Builder::new().name(name.into()).spawn(move || held.recv()).unwrap()
        };
        let ((hold, held), (let_go, ends)) = (mpsc::channel(), mpsc::channel());
        let (stuck, quick) = (spawn("stuck", held), spawn("quick", ends));
        // A thread gets its name a moment after it is started, and leaves the list of tasks a moment after it
        // can be joined.
        let wait_until = |name: &str, is_listed: bool| {
            let listed =
                || Tasks::default().begun(folder()).names.values().any(|other| other == name);
            while listed() != is_listed {
                std::thread::yield_now();
            }
        };
        wait_until("stuck", true);
        wait_until("quick", true);
        let begun = before.begun(folder());
        drop(let_go);
        let _ = quick.join();
        wait_until("quick", false);
        let left = within(Duration::from_millis(50), begun, move || _ = stuck.join());
        assert!(left.contains(&"stuck".into()) && !left.contains(&"quick".into()), "{left:?}");
        drop(hold);
    }
}
