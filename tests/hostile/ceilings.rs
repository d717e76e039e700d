//! What a guest may make the host spend. The book has the same numbers (specification).

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use casemate_test_support::process::guest_process;

use crate::guest::{Guest, patience};
use crate::table::Attack;

/// At most this much.
#[derive(Debug)]
pub(crate) struct Ceilings {
    /// Bytes of log.
    log: usize,
    /// Anonymous memory of the VMM, with what the guest touched of its own.
    memory: u64,
    descriptors: usize,
}

impl Ceilings {
    /// The ceilings that the book states, for the devices that the attack's guest has.
    pub(crate) fn of(attack: &Attack) -> Self {
        let sockets = attack.device == "sockets";
        Self {
            log: 64 << 10,
            // Guests touch at most 12 MiB; all streams together have a budget of 16 MiB.
            memory: if sockets { 48 << 20 } else { 24 << 20 },
            descriptors: if sockets { 1100 } else { 100 },
        }
    }
}

/// What a guest has cost.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: i32,
    pub(crate) log: String,
    log_bytes: usize,
    memory: u64,
    descriptors: usize,
}

impl Seen {
    pub(crate) fn stays_within(&self, ceilings: &Ceilings, failed: &str) {
        assert!(self.log_bytes <= ceilings.log, "bytes of log: {failed}");
        assert!(self.memory <= ceilings.memory, "memory: {failed}");
        assert!(self.descriptors <= ceilings.descriptors, "descriptors: {failed}");
    }
}

/// Watches a guest to its end.
pub(crate) fn watch(mut guest: Guest) -> Seen {
    // A process of the host that accepts what the guest sends, and reads nothing.
    let sockets = UnixListener::bind(guest.folder.path().join("sockets_1234")).unwrap();
    sockets.set_nonblocking(true).unwrap();
    let (mut patience, mut streams) = (patience(&guest.child), Vec::new());
    let (mut memory, mut descriptors, mut last) = (0, 0, 0);
    let started = guest.child.id();
    let status = loop {
        while let Ok((stream, _)) = sockets.accept() {
            streams.push(stream);
        }
        let process = format!("/proc/{}", guest_process(started).unwrap_or(started));
        memory = memory.max(anonymous(&process).unwrap_or(0));
        let open = fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        // The kernel closes what a new program does not inherit after this process has been woken: only
        // what two samples have counts.
        descriptors = descriptors.max(open.min(last));
        last = open;
        if let Some(status) = guest.child.try_wait().unwrap() {
            break status.code().unwrap_or(-1);
        }
        if patience.is_over() {
            guest.child.kill().unwrap();
            guest.child.wait().unwrap();
            break -2;
        }
        thread::sleep(Duration::from_millis(2));
    };
    let mut log = guest.log();
    let log_bytes = log.len();
    log.truncate(log.floor_char_boundary(600));
    Seen { status, log, log_bytes, memory, descriptors }
}

/// RssAnon of a process, in bytes.
fn anonymous(process: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
