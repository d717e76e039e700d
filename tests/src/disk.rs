//! A disk that UEFI firmware boots: a FAT file system with a boot loader, a kernel and its initial
//! RAM disk.

use std::io::{Cursor, Write as _};

use anyhow::{Context as _, Result};
use casemate_lab::packages::{Packages, Spec};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// Where firmware looks on a disk that no boot variable names (UEFI 2.10, section 3.5.1.1).
const DEFAULT_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";

/// The bytes of a disk whose loader, systemd's, starts `kernel` at once with `initrd` and `cmdline`.
///
/// # Errors
/// The loader cannot be had, or the file system cannot be made.
pub fn bootable(
    packages: &Packages,
    kernel: &[u8],
    initrd: &[u8],
    cmdline: &str,
) -> Result<Vec<u8>> {
    const SPARE: usize = 8 << 20;
    let spec: Spec = "systemd-boot-efi/trixie".parse()?;
    let loader = packages.file(&spec, "usr/lib/systemd/boot/efi/systemd-bootx64.efi", None)?;
    let loader = std::fs::read(loader).context("the boot loader")?;
    let size = (kernel.len() + initrd.len() + SPARE).next_multiple_of(1 << 20);
    let mut disk = Cursor::new(vec![0; size]);
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new())?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    let root = volume.root_dir();
    for directory in ["EFI", "EFI/BOOT", "loader", "loader/entries"] {
        root.create_dir(directory)?;
    }
    let entry = format!("title test\nlinux /vmlinuz\ninitrd /initrd\noptions {cmdline}\n");
    for (name, bytes) in [
        (DEFAULT_LOADER, &loader[..]),
        ("loader/loader.conf", b"timeout 0\n"),
        ("loader/entries/test.conf", entry.as_bytes()),
        ("vmlinuz", kernel),
        ("initrd", initrd),
    ] {
        root.create_file(name)?.write_all(bytes)?;
    }
    drop(root);
    volume.unmount()?;
    Ok(disk.into_inner())
}
