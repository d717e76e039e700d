//! Secrets of a broker stay out of swap and of core files.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities};

/// What to do where [`lock`] does not.
const REMEDY: &str = "run the broker with an unlimited limit of locked memory (LimitMEMLOCK=infinity of a \
                      systemd unit, or ulimit -l unlimited), or give its machine no swap, or encrypted swap";

/// Keeps this process out of core files.
pub(super) fn deny_core_files() {
    // Known to every kernel that runs us.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("casemate: warning: could not keep the process out of core files: {error}");
    }
}

/// Locks all memory of this process, present and future, or warns that it does not. A limit that would be
/// reached later, by a busy broker, is one that does not allow it: allocations would fail then.
pub(super) fn lock() {
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    if current != maximum {
        // If not, the limit below is the old one.
        let _ = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
    }
    let capable =
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let reason = if maximum.is_some() && !capable() {
        format!("the limit is {} bytes", maximum.unwrap_or_default())
    } else {
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        match mlockall(flags) {
            Ok(()) => return,
            Err(error) => error.to_string(),
        }
    };
    eprintln!(
        "casemate: warning: secrets may reach swap, as memory is not locked ({reason}); {REMEDY}"
    );
}
