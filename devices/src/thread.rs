//! Threads that give up rights before they begin.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

/// Starts a thread called `name` that does `setup` (the sandbox) and then `work`.
///
/// # Errors
/// No thread is free, or `setup` failed; no thread is left then.
pub fn spawn(
    name: &str,
    setup: impl FnOnce() -> io::Result<()> + Send + 'static,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (ready, started) = mpsc::sync_channel(1);
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        let result = setup();
        let is_ready = result.is_ok();
        // Nobody listens only if the process is on its way out.
        let _ = ready.send(result);
        if is_ready {
            work();
        }
    })?;
    started.recv().map_err(io::Error::other)??;
    Ok(thread)
}
