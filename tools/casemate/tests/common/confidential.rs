//! Confidential guests of Debian's kernels, for tests in the emulated SEV-SNP and TDX hosts.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use casemate_lab::guest::initramfs;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Chip, Host, Lab, Output, require};
use casemate_test_support::disk;

/// What the guest says of itself: its processors, its encryption, and its launch. SEV-SNP: what its
/// report says, MEASUREMENT at 0x90, HOST_DATA at 0xc0, ID_KEY_DIGEST at 0xe0, AUTHOR_KEY_DIGEST at 0x110 (SEV-SNP firmware ABI,
/// "ATTESTATION_REPORT"). TDX: registers, where the kernel shows them. With `panics` on its command
/// line its kernel panics; with `again` it writes to an empty disk and resets. Else it reads its disk and writes the sum of what it
/// read. A network interface and sockets it tries both ways.
const SCRIPT: &str = r"
# No words of the kernel's in the middle of ours.
dmesg -n 1
echo UP vcpus=$(nproc) kernel=$(uname -r)
echo PACKAGES $(dmesg | sed -n 's/.*CPU topo: Max. logical packages: *//p')
grep -q panics /proc/cmdline && echo c >/proc/sysrq-trigger
echo TIME $(date +%s)
dmesg | grep -o 'active: .*'
# Nothing in the log is as bad as a warning, and nothing taints the kernel.
echo TAINTED $(cat /proc/sys/kernel/tainted)
dmesg -r | sed -n 's/^<[0-4]>/WARNED /p'
# Whether there is memory that the firmware has left to the kernel to accept.
echo LEFT $(dmesg | grep -c 'efi: .*Unaccepted=')
mount -t configfs none /sys/kernel/config
report=/sys/kernel/config/tsm/report/r
hex() { dd if=$report/outblob bs=1 skip=$1 count=$2 2>/dev/null | od -An -v -tx1 | tr -d ' \n'; }
if [ -e /dev/sev-guest ] && mkdir $report; then
	head -c 64 /dev/zero >$report/inblob
	echo MEASUREMENT $(hex 144 48)
	echo HOST_DATA $(hex 192 32)
	echo ID_KEY $(hex 224 48)
	echo AUTHOR_KEY $(hex 272 48)
	echo REPORT $(base64 -w 0 $report/outblob)
	echo CERTIFICATES $(sha256sum <$report/auxblob | cut -d' ' -f1)
fi
# A quote; and a processor that goes and comes again: the firmware holds it meanwhile.
if [ -e /dev/tdx_guest ] && grep -q quote /proc/cmdline && mkdir $report; then
	head -c 64 /dev/zero >$report/inblob
	# No line of the kernel's within this one.
	echo 1 >/proc/sys/kernel/printk
	echo QUOTE $(base64 -w 0 $report/outblob)
	if [ -e /sys/devices/system/cpu/cpu1 ]; then
		echo 0 >/sys/devices/system/cpu/cpu1/online
		echo 1 >/sys/devices/system/cpu/cpu1/online
		echo AGAIN vcpus=$(nproc)
	fi
fi
for register in mrtd:sha384 rtmr0:sha384 rtmr1:sha384 rtmr2:sha384; do
	file=/sys/devices/virtual/misc/tdx_guest/measurements/$register
	[ -e $file ] && echo REGISTER $register $(od -An -v -tx1 $file | tr -d ' \n')
done
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
if [ -e /sys/class/net/eth0 ]; then
	ip link set eth0 up
	ip addr add 10.0.0.2/24 dev eth0
	echo PING $(ping -c 3 -s 1400 10.0.0.1 | grep -o '[0-9]* packets received')
fi
if [ -e /casemate-agent ] && grep -q shows /proc/cmdline; then
	/casemate-agent check
	echo SHOWN $?
fi
if [ -e /echo ]; then
	echo TO-HOST $(/echo connect vsock 6000 from-the-guest-END)
	/echo listen vsock 5000
fi
";

const MODULES: &[&str] = &["configfs", "virtio_pci", "virtio_blk", "pvpanic-mmio"];

/// What an interface and sockets need besides.
pub(crate) const DEVICES: &[&str] = &["virtio_net", "vmw_vsock_virtio_transport"];

/// The default, and `quiet`.
pub(crate) const CMDLINE: &str =
    "console=ttyS0 panic=-1 oops=panic rd.shell=0 efi=noruntime pci=noearly quiet";

/// A kernel and an initial RAM disk for it, in a folder that the emulated host sees.
pub(crate) struct Guest {
    host: Host,
    folder: tempfile::TempDir,
}

impl Guest {
    pub(crate) fn new(host: Host, series: &str) -> Self {
        Self::with(host, series, &[], &[])
    }

    /// With more modules, and programs at the root of the guest's file system.
    pub(crate) fn with(
        host: Host,
        series: &str,
        modules: &[&str],
        programs: &[(&str, &[u8])],
    ) -> Self {
        let packages = Packages::open().unwrap();
        let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
        let own = if host == Host::Snp { "sev-guest" } else { "tdx-guest" };
        let modules = kernel.modules(&[&[own], MODULES, modules].concat()).unwrap();
        // Not in /tmp: the emulated host has one of its own.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut image = initramfs(&packages, &modules, SCRIPT).unwrap();
        for (name, program) in programs {
            image.file(name, 0o755, *program);
        }
        fs::write(folder.path().join("initrd"), image.build()).unwrap();
        fs::copy(&kernel.image, folder.path().join("vmlinuz")).unwrap();
        Self { host, folder }
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    /// A program that the host runs.
    pub(crate) fn program(&self, name: &str, program: &[u8]) -> String {
        let path = self.write(name, program);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A disk that is not empty, and what is on it.
    pub(crate) fn disk(&self) -> (String, Vec<u8>) {
        let contents: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        (self.write("disk", &contents), contents)
    }

    /// A disk from which UEFI firmware boots the guest.
    pub(crate) fn boot_disk(&self) -> String {
        let [kernel, initrd] = ["vmlinuz", "initrd"].map(|name| fs::read(self.path(name)).unwrap());
        let packages = Packages::open().unwrap();
        let disk = disk::bootable(&packages, &kernel, &initrd, "console=ttyS0 quiet panic=-1");
        self.write("boot", disk.unwrap())
    }

    /// The flags that have it boot with its kernel and this command line.
    pub(crate) fn kernel(&self, cmdline: &str) -> String {
        let [kernel, initrd] = ["vmlinuz", "initrd"].map(|name| self.path(name));
        format!("--kernel {kernel} --initrd {initrd} --cmdline '{cmdline}'")
    }

    /// A command that runs it.
    pub(crate) fn run(&self, flags: &str) -> String {
        let platform = if self.host == Host::Snp { "snp" } else { "tdx" };
        let casemate = env!("CARGO_BIN_EXE_casemate");
        format!("{casemate} run --platform {platform} --memory 192M {flags} </dev/null")
    }

    /// A line of shell that runs it with its kernel, and says its exit status.
    pub(crate) fn line(&self, flags: &str) -> String {
        self.other_line(&format!("{} {flags}", self.kernel(CMDLINE)))
    }

    /// The same for a guest that does not boot the folder's kernel, or not so.
    pub(crate) fn other_line(&self, flags: &str) -> String {
        format!("{}; echo \"ENDED $?\"\n", self.run(flags))
    }

    /// The same as `line` for a guest that is ended once its log has `text`.
    pub(crate) fn line_until(&self, text: &str, flags: &str) -> String {
        let run = self.run(&format!("{} {flags} --stop-timeout 0", self.kernel(CMDLINE)));
        format!(
            "{run} >/tmp/log 2>&1 & guest=$!
             until grep -q '{text}' /tmp/log || ! kill -0 $guest; do sleep 0.1; done
             kill $guest; wait $guest; cat /tmp/log\n"
        )
    }

    pub(crate) fn in_lab(&self, script: &str) -> Option<Output> {
        Some(self.lab()?.run(&["sh", "-c", script]).unwrap())
    }

    /// In a host with a kernel of another series.
    pub(crate) fn in_lab_with(&self, kernel: &str, script: &str) -> Option<Output> {
        Some(self.lab()?.kernel(kernel).run(&["sh", "-c", script]).unwrap())
    }

    /// In a host with so many processors.
    pub(crate) fn in_lab_of(&self, processors: u8, script: &str) -> Option<Output> {
        Some(self.lab()?.vcpus(processors).run(&["sh", "-c", script]).unwrap())
    }

    /// In a host with another chip.
    pub(crate) fn in_lab_of_chip(&self, chip: Chip, script: &str) -> Option<Output> {
        Some(self.lab()?.chip(chip).run(&["sh", "-c", script]).unwrap())
    }

    fn lab(&self) -> Option<Lab> {
        Some(require(self.host)?.timeout(Duration::from_secs(1200)).share(self.folder.path()))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let sum = <sha2::Sha256 as sha2::Digest>::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a disk holds when a guest has written to it.
pub(crate) fn written(disk: &[u8]) -> Vec<u8> {
    let mut sector = b"written by the guest\n".to_vec();
    sector.resize(512, 0);
    [&sector, &disk[512..]].concat()
}

/// The word that follows a name, at its n-th place.
pub(crate) fn said<'a>(console: &'a str, name: &str, place: usize) -> &'a str {
    let after = console.match_indices(name).nth(place);
    let (at, _) = after.unwrap_or_else(|| panic!("no {name} number {place}: {console}"));
    console[at + name.len()..].split_whitespace().next().unwrap()
}

/// What was predicted is what the SEV-SNP platform measured and signed.
pub(crate) fn predicted(console: &str, place: usize) {
    let expected = said(console, "expected measurement ", place);
    assert_eq!(expected.len(), 96);
    assert_eq!(said(console, "MEASUREMENT ", place), expected, "{console}");
}

/// What was predicted is what the TDX module measured, for each guest in turn; the same guest
/// started again counts once.
pub(crate) fn predicted_mrtds(output: &Output) -> Vec<String> {
    let after = |text: &str, name: &str| -> Vec<String> {
        let found = text.match_indices(name).map(|(at, _)| &text[at + name.len()..]);
        found.map(|rest| rest.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let mut expected = after(&output.console, "expected measurement ");
    let mut measured = after(&output.platform_log, " mrtd ");
    expected.dedup();
    measured.dedup();
    assert_eq!(measured, expected, "{}", output.console);
    expected
}

/// What `casemate` prints.
pub(crate) fn casemate(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Flips a bit of the kernel in an IGVM file of our firmware: of what is not measured.
pub(crate) fn with_another_kernel(file: &str, kernel: &str) -> Vec<u8> {
    let mut file = fs::read(file).unwrap();
    let kernel = fs::read(kernel).unwrap();
    let at = file.windows(4096).position(|window| window == &kernel[0x1000..0x2000]).unwrap();
    file[at] ^= 1;
    file
}
