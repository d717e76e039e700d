//! Small Linux systems: busybox, modules and a script, as an initramfs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::CacheError;
use crate::initramfs::Initramfs;
use crate::kernel::{Flavour, Kernel, KernelError};
use crate::packages::{PackageError, Packages};

/// Runs before the script that is given: mounts, modules, busybox's commands in the path.
pub(crate) const PROLOGUE: &str = include_str!("prologue.sh");

/// Why a guest's image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
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

/// What a guest's kernel has as modules and a guest may want.
pub const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "sev-guest",
    "tdx-guest",
];

/// Its description for `casemate run`, beside its files.
const DESCRIPTION: &str = r#"# A small guest to try things with: a kernel of Debian's and busybox.
kernel = "vmlinuz"
initrd = "initrd"
cmdline = "console=ttyS0 quiet panic=-1 rd.shell=0 efi=noruntime"
memory = "256M"
"#;

/// Writes a small guest to a directory: `guest.toml`, `vmlinuz`, `vmlinux` and `initrd`, whose paths are
/// returned. It starts a shell; with `casemate.hello` on its command line it says what it is and powers
/// off; with `casemate.report` it also prints evidence over the SHA-512 of its first disk.
///
/// # Errors
///
/// The kernel or busybox cannot be had, or the directory cannot be written.
pub fn write(directory: &Path, series: &str) -> Result<[PathBuf; 4], GuestError> {
    let packages = Packages::open()?;
    let kernel = Kernel::debian(&packages, series, Flavour::Cloud)?;
    let modules = kernel.modules(MODULES)?;
    let mut image = initramfs(&packages, &modules, include_str!("guest-init.sh"))?;
    image.file("bin/report", 0o755, include_str!("guest-report.sh"));
    fs::create_dir_all(directory).map_err(CacheError::io("creating", directory))?;
    let files = ["guest.toml", "vmlinuz", "vmlinux", "initrd"].map(|name| directory.join(name));
    let [description, vmlinuz, vmlinux, initrd] = &files;
    for (file, from) in [(vmlinuz, &kernel.image), (vmlinux, &kernel.vmlinux(packages.cache())?)] {
        fs::copy(from, file).map_err(CacheError::io("writing", file))?;
    }
    fs::write(initrd, image.build()).map_err(CacheError::io("writing", initrd))?;
    fs::write(description, DESCRIPTION).map_err(CacheError::io("writing", description))?;
    Ok(files)
}
