//! The processes of `casemate run`.

use std::fs;

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
