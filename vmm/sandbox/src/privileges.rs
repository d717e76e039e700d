//! Capabilities, identities, and what a process inherits or leaves behind.

#![allow(unsafe_code, reason = "closes files by number; the allocator has no safe form")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, RawFd};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, parent_process_death_signal, set_dumpable_behavior,
    set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::User;

/// Files that were open before the process did anything.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Those of this moment, but for the standard streams and `keep`.
    pub(crate) fn now(keep: &impl AsFd) -> io::Result<Self> {
        let keep = keep.as_fd().as_raw_fd();
        let folder = fs::read_dir("/proc/self/fd")?;
        let numbers = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let listed: Vec<RawFd> = numbers.filter(|number| *number > 2 && *number != keep).collect();
        // The directory itself is closed by now.
        let open = |number: &RawFd| fs::exists(format!("/proc/self/fd/{number}")).unwrap_or(false);
        Ok(Self(listed.into_iter().filter(open).collect()))
    }

    /// Closes them.
    pub(crate) fn close(&self) {
        for number in &self.0 {
            // SAFETY: the process began with these files open. No value of this process owns one: a parent's
            // values are never used or dropped in its child, a program has opened nothing yet, and none was
            // closed, so that its number was not given to another file.
            unsafe { libc::close(*number) };
        }
    }
}

/// Keeps the allocator to one arena, for which it opens no file: before it shrinks another one it reads how the
/// kernel overcommits memory. One arena also takes less memory than one for each thread.
pub(crate) fn limit_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the process has one thread, and the call changes a number of the allocator's.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// No program that is executed has more rights than this process, and none of its children gets a
/// capability back.
pub(crate) fn gain_nothing() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    if !capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        // Whoever may not lower the bounding set has nothing in it that no-new-privs leaves.
        return Ok(());
    }
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // The kernel does not know more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether this process may make namespaces.
pub(crate) fn may_mount() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// No core file and no debugger shows this process.
pub(crate) fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Makes the calling thread one of `user`, in no other group.
pub(crate) fn become_user(user: User) -> io::Result<()> {
    let death = parent_process_death_signal()?;
    set_thread_groups(&[])?;
    set_thread_res_gid(user.group, user.group, user.group)?;
    set_thread_res_uid(user.user, user.user, user.user)?;
    // Which a change of identity has undone.
    Ok(set_parent_process_death_signal(death)?)
}

/// Takes all capabilities but those of `kept` from the calling thread.
pub(crate) fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let death = parent_process_death_signal()?;
    let sets = capabilities(None)?;
    let sets = CapabilitySets {
        effective: sets.effective & kept,
        permitted: sets.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)?;
    // The kernel forgets it where capabilities are lost.
    Ok(set_parent_process_death_signal(death)?)
}
