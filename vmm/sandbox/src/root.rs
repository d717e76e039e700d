//! A root directory with nothing in it but what the guest's process needs.

#![allow(unsafe_code, reason = "unshare has no safe form")]

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move,
    mount_remount, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where the new root is mounted before it becomes the root. Nothing that the process needs lies
/// below it.
const PLACE: &str = "/proc";

/// Gives the process mounts, IPC objects and a host name of its own; `false` if the host does not
/// allow it.
pub(crate) fn separate() -> io::Result<bool> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: the table of files, which other threads may use, stays shared.
    match unsafe { unshare_unsafe(flags) } {
        Ok(()) => {}
        Err(Errno::PERM | Errno::NOSPC | Errno::NOSYS | Errno::INVAL) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(true)
}

/// Makes an empty directory the root of all threads, with each of `folders` at its place.
pub(crate) fn empty<'a>(folders: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("casemate", PLACE, "tmpfs", flags, c"size=64k,mode=755")?;
    for folder in folders {
        let inside = Path::new(PLACE).join(folder.strip_prefix("/").unwrap_or(folder));
        fs::create_dir_all(&inside)?;
        mount_bind(folder, &inside)?;
    }
    mount_remount(PLACE, flags | MountFlags::RDONLY, c"")?;
    chdir(PLACE)?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // The root is the kernel's first one (an initial RAM disk), which stays.
        Err(Errno::INVAL) => {
            mount_move(".", "/")?;
            chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(chdir("/")?)
}
