//! Guests of Debian's kernels for tests in the emulated SEV-SNP host.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use casemate_lab::guest::initramfs;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, Output, require};

/// What the guest says of itself: its processors, its encryption, and what its report says of its
/// launch: MEASUREMENT at 0x90, HOST_DATA at 0xc0, ID_KEY_DIGEST at 0xe0 (SEV-SNP firmware ABI,
/// "ATTESTATION_REPORT"). With `again` on its command line it writes to an empty disk and resets. Else
/// it reads its disk and writes the sum of what it read.
pub(crate) const SCRIPT: &str = r"
# No words of the kernel's in the middle of ours.
dmesg -n 1
echo UP vcpus=$(nproc) kernel=$(uname -r)
dmesg | grep -o 'active: AMD SEV SEV-ES SEV-SNP'
mount -t configfs none /sys/kernel/config
report=/sys/kernel/config/tsm/report/r
mkdir $report
head -c 64 /dev/zero >$report/inblob
hex() { dd if=$report/outblob bs=1 skip=$1 count=$2 2>/dev/null | od -An -v -tx1 | tr -d ' \n'; }
echo MEASUREMENT $(hex 144 48)
echo HOST_DATA $(hex 192 32)
echo ID_KEY $(hex 224 48)
if grep -q again /proc/cmdline && ! grep -q written /dev/vda; then
	echo written by the guest | dd of=/dev/vda bs=512 conv=sync,notrunc 2>/dev/null
	sync
	reboot -f
fi
if [ -b /dev/vda ]; then
	echo DISK $(sha256sum </dev/vda | cut -d' ' -f1)
	echo written by the guest | dd of=/dev/vda bs=512 conv=sync,notrunc 2>/dev/null
	sync
fi
";

/// Drivers of reports and disks.
pub(crate) const MODULES: &[&str] = &["configfs", "sev-guest", "virtio_pci", "virtio_blk"];

/// Ciphers that 6.12's driver of reports asks for by name.
pub(crate) const CIPHERS: &[&str] = &["ghash-generic", "gcm"];

pub(crate) const CMDLINE: &str = "console=ttyS0 quiet panic=-1 efi=noruntime";

pub(crate) const HOST_DATA: &str =
    "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

pub(crate) fn in_lab(script: &str, folder: &Path) -> Option<Output> {
    let lab = require(Host::Snp)?.timeout(Duration::from_secs(400)).share(folder);
    Some(lab.run(&["sh", "-c", script]).unwrap())
}

pub(crate) fn guest(series: &str, more_modules: &[&str]) -> tempfile::TempDir {
    let packages = Packages::open().unwrap();
    let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
    let modules = kernel.modules(&[more_modules, MODULES].concat()).unwrap();
    // Not in /tmp: the emulated host has one of its own.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = initramfs(&packages, &modules, SCRIPT).unwrap().build();
    fs::write(folder.path().join("initrd"), image).unwrap();
    fs::copy(&kernel.image, folder.path().join("vmlinuz")).unwrap();
    folder
}

/// A line of shell that runs the guest and says its exit status.
pub(crate) fn line(folder: &Path, flags: &str) -> String {
    let path = folder.display();
    let boot = format!("--kernel {path}/vmlinuz --initrd {path}/initrd --cmdline '{CMDLINE}'");
    other_line(&format!("{boot} {flags}"))
}

/// The same for a guest that does not boot the folder's kernel, or not so.
pub(crate) fn other_line(flags: &str) -> String {
    let casemate = env!("CARGO_BIN_EXE_casemate");
    format!(
        "timeout 150 {casemate} run --platform snp --memory 192M {flags} </dev/null; echo \"ENDED \
         $?\"\n"
    )
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let sum = <sha2::Sha256 as sha2::Digest>::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The word that follows a name, at its n-th place.
pub(crate) fn said<'a>(console: &'a str, name: &str, place: usize) -> &'a str {
    let after = console.match_indices(name).nth(place);
    let (at, _) = after.unwrap_or_else(|| panic!("no {name} number {place}: {console}"));
    console[at + name.len()..].split_whitespace().next().unwrap()
}

/// What was predicted is what the platform measured and signed.
pub(crate) fn predicted(console: &str, place: usize) {
    let expected = said(console, "expected measurement ", place);
    assert_eq!(expected.len(), 96);
    assert_eq!(said(console, "MEASUREMENT ", place), expected, "{console}");
}
