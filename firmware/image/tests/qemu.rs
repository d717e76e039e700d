//! The image as `-bios` of a machine that nobody made for it: plain QEMU with Debian's kernels.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use casemate_firmware_image::IMAGE as FIRMWARE;
use casemate_firmware_logic::layout::{IMAGE, WINDOW, WINDOW_END};
use casemate_lab::guest::initramfs;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, qemu, require};
use casemate_launch::firmware::{self, Flags};
use casemate_launch::loader_window::Payloads;
use casemate_launch::{Contents, LaunchPlan};

/// For a boot of Linux in software, with other tests beside it.
const LIMIT: Duration = Duration::from_secs(240);

/// The guest is told of so much. The machine has more: below.
const MEMORY: u64 = 256 << 20;

/// With reduced hardware, as the ACPI tables say it is, Linux measures its clock by no timer of QEMU's.
/// The one that `run` gives ticks once in a nanosecond.
const COMMAND_LINE: &[u8] = b"console=ttyS0 panic=-1 reboot=t tsc=reliable tsc_early_khz=1000000";

/// What the guest does. QEMU's machine has no port that powers it off as the ACPI tables say, but a
/// reset ends it, too.
const SCRIPT: &str = "echo UP vcpus=$(nproc) kernel=$(uname -r); reboot -f";

#[test]
fn linux_6_12_boots_in_plain_qemu() {
    boots("6.12");
}

#[test]
fn linux_7_2_boots_in_plain_qemu() {
    boots("7.2");
}

fn boots(series: &str) {
    if require(Host::Kvm).is_none() {
        return;
    }
    let packages = Packages::open().unwrap();
    let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
    for vcpus in [1, 4] {
        let payloads = Payloads {
            kernel: fs::read(&kernel.image).unwrap().into(),
            initrd: initramfs(&packages, &[], SCRIPT).unwrap().build().into(),
            cmdline: COMMAND_LINE.into(),
            memory: MEMORY,
            vcpus,
        };
        let plan = firmware::plain_plan(FIRMWARE, Flags::default(), &payloads).unwrap();
        let console = run(&plan, vcpus);
        assert!(console.contains(&format!("UP vcpus={vcpus} kernel={series}")), "{console}");
    }
}

/// Runs the machine to its end, and gives what it wrote to the serial port.
///
/// The loader window needs memory behind it. So the machine has almost 4 GiB, up to the devices, in
/// one piece; the host gives it what is used. Its time is instructions, not waits: the same on every
/// host, and no slower than the host is.
fn run(plan: &LaunchPlan, vcpus: u32) -> String {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bios = write(folder.path(), plan, IMAGE, 4 << 30);
    let window = write(folder.path(), plan, WINDOW, WINDOW_END);
    let serial = folder.path().join("serial");
    let mut command = qemu().unwrap();
    let mib = WINDOW_END >> 20;
    command
        .args(["-accel", "tcg", "-icount", "shift=1,sleep=off"])
        .args(["-cpu", "max", "-smp", &vcpus.to_string()])
        .args(["-machine", "pc,max-ram-below-4g=4G", "-m", &format!("{mib}M")])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-bios")
        .arg(bios)
        .args([
            "-device",
            &format!("loader,addr={WINDOW:#x},force-raw=on,file={}", window.display()),
        ])
        .args(["-serial", &format!("file:{}", serial.display())]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("no end within {LIMIT:?}:\n{}", fs::read_to_string(&serial).unwrap());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    String::from_utf8_lossy(&fs::read(serial).unwrap()).into_owned()
}

/// A file of what `plan` puts between two addresses, from the first on.
fn write(folder: &Path, plan: &LaunchPlan, start: u64, end: u64) -> PathBuf {
    let mut bytes = Vec::new();
    for import in &plan.imports {
        let at = import.range.start().0;
        if let (true, Contents::Bytes(contents)) = ((start..end).contains(&at), &import.contents) {
            bytes.resize(usize::try_from(at - start).unwrap(), 0);
            bytes.extend_from_slice(contents);
        }
    }
    let file = folder.join(format!("{start:x}"));
    fs::write(&file, bytes).unwrap();
    file
}
