//! `casemate run` with Debian's kernels, in an emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use casemate_lab::cache::Cache;
use casemate_lab::guest::{MODULES, initramfs};
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, Output, require};
use casemate_tests::tiny;

/// What the guest does, by its command line.
const SCRIPT: &str = r"
echo UP vcpus=$(nproc) kernel=$(uname -r)
case $(sed -n 's/.*casemate.do=\([a-z-]*\).*/\1/p' /proc/cmdline) in
panic) echo c >/proc/sysrq-trigger ;;
status) exit-with 7 ;;
button)
	# struct input_event: 24 bytes; the button is the only input device.
	echo READY
	head -c 24 /dev/input/event0 >/dev/null
	echo PRESSED ;;
esac
";

/// A kernel of Debian's and an initramfs for it, in a directory that the emulated host sees.
struct Guest {
    folder: tempfile::TempDir,
}

impl Guest {
    fn new(series: &str) -> Self {
        let cache = Cache::open().unwrap();
        let packages = Packages::open().unwrap();
        let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
        let wanted: Vec<_> =
            MODULES.iter().copied().chain(["pvpanic-mmio", "button", "evdev"]).collect();
        let modules = kernel.modules(&wanted).unwrap();
        let mut image = initramfs(&packages, &modules, SCRIPT).unwrap();
        image.file("bin/exit-with", 0o755, tiny::exit_with_digit());
        // Not in /tmp: the emulated host has one of its own.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("initrd"), image.build()).unwrap();
        fs::copy(&kernel.image, path("vmlinuz")).unwrap();
        fs::copy(kernel.vmlinux(&cache).unwrap(), path("vmlinux")).unwrap();
        Self { folder }
    }

    /// A line of shell that runs it and says its exit status.
    fn line(&self, kernel: &str, does: &str, flags: &str) -> String {
        let (casemate, folder) = (env!("CARGO_BIN_EXE_casemate"), self.folder.path().display());
        format!(
            "{casemate} run --platform plain --kernel {folder}/{kernel} --initrd {folder}/initrd \
             --cmdline 'console=ttyS0 quiet panic=-1 casemate.do={does}' {flags} </dev/null; \
             echo \"ENDED {does} $?\"\n"
        )
    }
}

/// Runs a script in an emulated host; `None` where there is none.
fn in_lab(script: &str, folder: &Path) -> Option<Output> {
    let lab = require(Host::Kvm)?.timeout(Duration::from_secs(900)).share(folder);
    Some(lab.run(&["sh", "-c", script]).unwrap())
}

#[test]
fn kernels_boot_to_user_space() {
    if require(Host::Kvm).is_none() {
        return;
    }
    for (series, cases) in [
        ("6.12", &[("vmlinuz", 1), ("vmlinuz", 4), ("vmlinux", 2)][..]),
        ("7.2", &[("vmlinuz", 2), ("vmlinux", 1)]),
    ] {
        let guest = Guest::new(series);
        let mut script = String::new();
        for (kernel, vcpus) in cases {
            script += &guest.line(kernel, "power-off", &format!("--vcpus {vcpus}"));
        }
        let Some(output) = in_lab(&script, guest.folder.path()) else { return };
        let console = &output.console;
        assert_eq!(console.matches("ENDED power-off 0").count(), cases.len(), "{console}");
        for (_, vcpus) in cases {
            assert!(console.contains(&format!("UP vcpus={vcpus} kernel={series}")), "{console}");
        }
    }
}

/// The way that an encrypted guest takes: reset vector, config page, loader window, 64-bit entry.
#[test]
fn our_firmware_starts_kernels() {
    if require(Host::Kvm).is_none() {
        return;
    }
    let guest = Guest::new("7.2");
    let image = guest.folder.path().join("firmware");
    fs::write(&image, casemate_firmware_image::IMAGE).unwrap();
    let flags = format!("--vcpus 2 --firmware {}", image.display());
    let script = guest.line("vmlinuz", "power-off", &flags);
    let Some(output) = in_lab(&script, guest.folder.path()) else { return };
    let console = &output.console;
    assert!(console.contains("UP vcpus=2 kernel=7.2"), "{console}");
    assert!(console.contains("ENDED power-off 0"), "{console}");
}

/// A reset and a triple fault are tested with a guest of a few instructions, in `run_tiny`.
#[test]
fn each_end_of_linux_has_its_status() {
    if require(Host::Kvm).is_none() {
        return;
    }
    let guest = Guest::new("6.12");
    let mut script = String::new();
    let cases = [("panic", "", 121), ("status", "", 7)];
    for (does, flags, _) in cases {
        script += &guest.line("vmlinux", does, flags);
    }
    let Some(output) = in_lab(&script, guest.folder.path()) else { return };
    let mut expected = String::new();
    for (does, _, status) in cases {
        writeln!(expected, "ENDED {does} {status}").unwrap();
    }
    let ends: String = output
        .console
        .lines()
        .filter(|line| line.starts_with("ENDED "))
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    assert_eq!(ends, expected, "{}", output.console);
}

/// On a terminal: the monitor takes a command, the guest gets its power button pressed.
#[test]
fn the_monitor_presses_the_power_button() {
    if require(Host::Kvm).is_none() {
        return;
    }
    let guest = Guest::new("6.12");
    let line = guest.line("vmlinux", "button", "");
    let (command, _) = line.split_once(" </dev/null").unwrap();
    let script = format!(
        "mkfifo /tmp/keys; script -qefc \"{command}\" /tmp/log </tmp/keys >/dev/null &\n\
         exec 3>/tmp/keys; until grep -q READY /tmp/log; do sleep 1; done\n\
         printf '\\001cstatus\\rpower-button\\r\\001c' >&3; wait $!; echo ENDED $?; cat /tmp/log"
    );
    let Some(output) = in_lab(&script, guest.folder.path()) else { return };
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    for expected in ["exits so far", "pressed", "PRESSED"] {
        assert!(console.contains(expected), "{expected}: {console}");
    }
}
