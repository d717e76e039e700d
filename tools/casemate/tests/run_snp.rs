//! SEV-SNP guests of `casemate run`, in the emulated host: an unmodified kernel with its kvm_amd and
//! its driver of the secure processor, which measures and signs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use casemate_lab::guest::initramfs;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, Output, require};

/// What the guest says of itself: its processors, its encryption, and what its report says of its
/// launch: MEASUREMENT at 0x90, HOST_DATA at 0xc0 (SEV-SNP firmware ABI, "ATTESTATION_REPORT").
/// Then it reads its disk and writes the sum of what it read.
const SCRIPT: &str = r"
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
if [ -b /dev/vda ]; then
	echo DISK $(sha256sum </dev/vda | cut -d' ' -f1)
	echo written by the guest | dd of=/dev/vda bs=512 conv=sync,notrunc 2>/dev/null
	sync
fi
";

/// Drivers of reports and disks.
const MODULES: &[&str] = &["configfs", "sev-guest", "virtio_pci", "virtio_blk"];

/// Ciphers that 6.12's driver of reports asks for by name.
const CIPHERS: &[&str] = &["ghash-generic", "gcm"];

const HOST_DATA: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

fn in_lab(script: &str, folder: &Path) -> Option<Output> {
    let lab = require(Host::Snp)?.timeout(Duration::from_secs(400)).share(folder);
    Some(lab.run(&["sh", "-c", script]).unwrap())
}

fn guest(series: &str, more_modules: &[&str]) -> tempfile::TempDir {
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
fn line(folder: &Path, flags: &str) -> String {
    let (casemate, folder) = (env!("CARGO_BIN_EXE_casemate"), folder.display());
    format!(
        "timeout 150 {casemate} run --platform snp --kernel {folder}/vmlinuz --initrd \
         {folder}/initrd --memory 192M --cmdline 'console=ttyS0 quiet panic=-1 efi=noruntime' \
         {flags} </dev/null; echo \"ENDED $?\"\n"
    )
}

/// The word that follows a name, at its n-th place.
fn said<'a>(console: &'a str, name: &str, place: usize) -> &'a str {
    let after = console.match_indices(name).nth(place);
    let (at, _) = after.unwrap_or_else(|| panic!("no {name} number {place}: {console}"));
    console[at + name.len()..].split_whitespace().next().unwrap()
}

/// What was predicted is what the platform measured and signed.
fn predicted(console: &str, place: usize) {
    let expected = said(console, "expected measurement ", place);
    assert_eq!(expected.len(), 96);
    assert_eq!(said(console, "MEASUREMENT ", place), expected, "{console}");
}

#[test]
fn a_guest_is_encrypted_and_measures_to_what_was_predicted() {
    if require(Host::Snp).is_none() {
        return;
    }
    let folder = guest("6.12", CIPHERS);
    let disk = folder.path().join("disk");
    let contents: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    fs::write(&disk, &contents).unwrap();
    let config = folder.path().join("guest.toml");
    let mut file = fs::File::create(&config).unwrap();
    writeln!(file, "[snp]\nhost_data = \"{HOST_DATA}\"").unwrap();
    let flags = format!("--disk {} {}", disk.display(), config.display());
    let script = line(folder.path(), &flags);
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    assert!(console.contains("UP vcpus=1 kernel=6.12"), "{console}");
    assert!(console.contains("active: AMD SEV SEV-ES SEV-SNP"), "{console}");
    assert_eq!(said(console, "HOST_DATA ", 0), HOST_DATA);
    predicted(console, 0);
    // Through shared bounce buffers, both ways.
    let sum = <sha2::Sha256 as sha2::Digest>::digest(&contents);
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(said(console, "DISK ", 0), sum);
    assert!(fs::read(&disk).unwrap().starts_with(b"written by the guest"));
}

#[test]
fn the_guest_starts_its_other_processors() {
    if require(Host::Snp).is_none() {
        return;
    }
    let folder = guest("7.2", &[]);
    let script = line(folder.path(), "--vcpus 4");
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    assert!(console.contains("UP vcpus=4 kernel=7.2"), "{console}");
    predicted(console, 0);
}
