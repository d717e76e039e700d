//! The end of a guest's threads and devices, within a limit.
//!
//! A device may wait for a file that its file system does not answer for, or a vCPU for such a device.
//! The process ends all the same, and says which threads it left behind.

use std::collections::BTreeSet;
use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a guest may take to end.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// Name of the thread that waits for the others.
const OWN: &str = "teardown";

/// Threads of this process, by number.
#[derive(Default)]
pub(crate) struct Tasks(BTreeSet<u32>);

impl Tasks {
    /// Those there are now.
    pub(crate) fn now() -> Self {
        let entries = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        Self(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Names of threads that have begun since, each with the kernel function that it waits in.
    fn since(&self) -> Vec<String> {
        let read = |task: u32, file: &str| {
            let text = fs::read_to_string(format!("/proc/self/task/{task}/{file}"));
            text.unwrap_or_default().trim().to_owned()
        };
        let new = Self::now().0.into_iter().filter(|task| !self.0.contains(task));
        let described = new.filter_map(|task| {
            let (name, place) = (read(task, "comm"), read(task, "wchan"));
            (!name.is_empty() && name != OWN).then(|| match place.as_str() {
                // The kernel keeps it to itself, or the thread runs.
                "" | "0" => name,
                place => format!("{name} (in {place})"),
            })
        });
        described.collect()
    }
}

/// Runs `end`, but waits no longer than `limit` for it. Returns the threads that have begun since
/// `before` and are left then.
pub(crate) fn within(
    limit: Duration,
    before: &Tasks,
    end: impl FnOnce() + Send + 'static,
) -> Vec<String> {
    let (sender, done) = mpsc::channel();
    let work = move || {
        end();
        // Nobody listens any more only if the limit has passed.
        let _ = sender.send(());
    };
    if let Err(error) = thread::Builder::new().name(OWN.into()).spawn(work) {
        return vec![format!("threads that could not be waited for: {error}")];
    }
    match done.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => before.since(),
        // Also after a panic, which has been reported by its own hook.
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_in_time_leaves_nobody() {
        assert!(within(Duration::from_secs(60), &Tasks::now(), || ()).is_empty());
    }

    #[test]
    fn thread_that_does_not_end_is_named() {
        let before = Tasks::now();
        let (hold, held) = mpsc::channel::<()>();
        let stuck = thread::Builder::new().name("stuck".into()).spawn(move || held.recv()).unwrap();
        let left = within(Duration::from_millis(50), &before, move || _ = stuck.join());
        assert!(left.iter().any(|thread| thread.starts_with("stuck")), "{left:?}");
        drop(hold);
    }
}
