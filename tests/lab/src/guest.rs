//! Small Linux systems: busybox, modules and a script, as an initramfs.

use std::fs;

use crate::cache::CacheError;
use crate::initramfs::Initramfs;
use crate::packages::{PackageError, Packages};

/// Runs before the script that is given: mounts, modules, busybox's commands in the path.
pub(crate) const PROLOGUE: &str = include_str!("prologue.sh");

/// Why a guest's image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// busybox could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A file.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// An initramfs whose `/init` runs `script` with busybox's shell, as root, after `/dev`, `/proc`,
/// `/sys` and `/tmp` are there and `modules` are loaded, in their order (see [`Kernel::modules`]).
///
/// [`Kernel::modules`]: crate::kernel::Kernel::modules
///
/// All of busybox's commands are in the path. The standard output is the console. When the script
/// ends, the machine powers off. The caller can add files before it builds the archive.
///
/// # Errors
///
/// busybox cannot be had.
pub fn initramfs(
    packages: &Packages,
    modules: &[(String, Vec<u8>)],
    script: &str,
) -> Result<Initramfs, GuestError> {
    let busybox = packages.busybox()?;
    let busybox = fs::read(&busybox).map_err(CacheError::io("reading", busybox))?;
    let mut image = Initramfs::new();
    for directory in
        ["dev", "proc", "sys", "tmp", "run", "mnt", "root", "sbin", "usr/bin", "usr/sbin"]
    {
        image.directory(directory);
    }
    image.file("bin/busybox", 0o755, busybox).symlink("bin/sh", "busybox");
    // The kernel opens the console before /init could mount anything.
    image.character("dev/console", 5, 1).character("dev/null", 1, 3);
    let mut list = String::new();
    for (name, bytes) in modules {
        image.file(&format!("modules/{name}.ko"), 0o644, bytes.as_slice());
        list.push_str(name);
        list.push('\n');
    }
    image.file("modules/list", 0o644, list);
    image.file("init", 0o755, format!("{PROLOGUE}\n{script}\n\npoweroff -f\n"));
    Ok(image)
}
