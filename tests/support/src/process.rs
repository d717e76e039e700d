//! The processes of `casemate run`.

use std::fs;
use std::process::Child;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use casemate_lab::Patience;

/// The process that holds the guest, of the one that was started; `None` before it is there and once it
/// has ended.
#[must_use]
pub fn guest_process(started: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{started}/task/{started}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

/// The same for a script in an emulated host where one `casemate run` runs: defines `guest`, which says the
/// number of the process.
pub const GUEST_IN_SHELL: &str = "guest() { echo $(for one in $(pidof casemate); do cat /proc/$one/task/$one/children; done); }\n";

/// The work and sleep that these functions grant. What tests wait for takes seconds at most.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits until `ready` returns true, however long that takes on a busy machine: see [`Patience`].
///
/// # Panics
///
/// `process` and its descendants have used the limit of two minutes meanwhile.
pub fn wait_for(process: u32, what: &str, mut ready: impl FnMut() -> bool) {
    let mut patience = Patience::new(process, LIMIT);
    while !ready() {
        assert!(!patience.is_over(), "process {process} took too long: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The next value of a thread that reads what `process` writes.
///
/// # Panics
///
/// The thread has ended, or see [`wait_for`].
pub fn receive<T>(process: u32, what: &str, from: &Receiver<T>) -> T {
    let mut received = None;
    wait_for(process, what, || match from.try_recv() {
        Err(TryRecvError::Disconnected) => panic!("no more comes from process {process}: {what}"),
        next => {
            received = next.ok();
            received.is_some()
        }
    });
    received.expect("it was waited for")
}

/// The exit status of a child once it has ended; a signal is -1.
///
/// # Panics
///
/// It does not end: it is killed then.
pub fn wait_for_end(child: &mut Child, what: &str) -> i32 {
    let mut patience = Patience::new(child.id(), LIMIT);
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code().unwrap_or(-1);
        }
        if patience.is_over() {
            // Best effort: the panic is what counts.
            let _ = child.kill();
            let _ = child.wait();
            panic!("it did not end: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
