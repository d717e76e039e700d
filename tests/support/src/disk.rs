//! A disk that UEFI firmware boots: a FAT file system with boot loaders, a kernel and its initial
//! RAM disk.

use std::io::{Cursor, Write as _};

use anyhow::{Context as _, Result};
use casemate_lab::packages::Packages;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// Where firmware looks on a disk that no boot variable names (UEFI 2.10, section 3.5.1.1).
const DEFAULT_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";

/// The bytes of a disk that starts `kernel` at once with `initrd` and `cmdline`. Shim and GRUB are
/// Debian's signed ones, so that firmware with secure boot takes it too, if the kernel is Debian's.
///
/// # Errors
/// The loaders cannot be had, or the file system cannot be made.
pub fn bootable(
    packages: &Packages,
    kernel: &[u8],
    initrd: &[u8],
    cmdline: &str,
) -> Result<Vec<u8>> {
    const SPARE: usize = 8 << 20;
    let shim = file(packages, "shim-signed/sid", "usr/lib/shim/shimx64.efi.signed")?;
    let grub = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";
    let grub = file(packages, "grub-efi-amd64-signed/sid", grub)?;
    let size = (kernel.len() + initrd.len() + SPARE).next_multiple_of(1 << 20);
    let mut disk = Cursor::new(vec![0; size]);
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new())?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    let root = volume.root_dir();
    for directory in ["EFI", "EFI/BOOT", "EFI/debian"] {
        root.create_dir(directory)?;
    }
    let script = format!("set timeout=0\nlinux /vmlinuz {cmdline}\ninitrd /initrd\nboot\n");
    for (name, bytes) in [
        (DEFAULT_LOADER, &shim[..]),
        ("EFI/BOOT/grubx64.efi", &grub),
        ("EFI/debian/grub.cfg", script.as_bytes()),
        ("vmlinuz", kernel),
        ("initrd", initrd),
    ] {
        root.create_file(name)?.write_all(bytes)?;
    }
    drop(root);
    volume.unmount()?;
    Ok(disk.into_inner())
}

fn file(packages: &Packages, package: &str, path: &str) -> Result<Vec<u8>> {
    let path = packages.file(&package.parse()?, path, None)?;
    std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))
}
