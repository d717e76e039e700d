//! `casemate run` with Debian's kernels, in an emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, SystemTime};

use casemate_lab::{Host, Lab, require_lab};
use common::{Guest, lab, said};

/// What the guest does, by its command line.
const SCRIPT: &str = r"
echo UP vcpus=$(nproc) kernel=$(uname -r)
echo PACKAGES $(dmesg | sed -n 's/.*CPU topo: Max. logical packages: *//p')
case $(sed -n 's/.*casemate.do=\([a-z-]*\).*/\1/p' /proc/cmdline) in
reset*) reboot -f ;;
panic) echo c >/proc/sysrq-trigger ;;
status) exit-with 7 ;;
machine)
	echo ROUTING $(dmesg | grep -o 'APIC routing to: .*')
	echo X2APIC $(grep -c x2apic /proc/cpuinfo)
	echo TIME $(date +%s) $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
	tr -s ' ' </proc/interrupts | grep -e APIC -e MSI ;;
button)
	# struct input_event: 24 bytes; the button is the only input device.
	echo READY
	head -c 24 /dev/input/event0 >/dev/null
	echo PRESSED ;;
esac
";

/// A line of shell that runs the guest and says its exit status.
fn line(guest: &Guest, kernel: &str, does: &str, flags: &str) -> String {
    let command = guest.command(kernel, &format!("casemate.do={does}"), flags);
    let name = does.split(' ').next().unwrap_or(does);
    format!("{command} </dev/null; echo \"ENDED {name} $?\"\n")
}

#[test]
fn kernels_boot_to_user_space() {
    if lab().is_none() {
        return;
    }
    for (series, cases) in [
        ("6.12", &[("vmlinuz", 1), ("vmlinuz", 4), ("vmlinux", 2)][..]),
        ("7.2", &[("vmlinuz", 2), ("vmlinux", 1)]),
    ] {
        let guest = Guest::new(series, SCRIPT);
        let mut script = String::new();
        for (kernel, vcpus) in cases {
            script += &line(&guest, kernel, "power-off", &format!("--vcpus {vcpus}"));
        }
        let Some(output) = guest.in_lab(&script) else { return };
        let console = &output.console;
        assert_eq!(console.matches("ENDED power-off 0").count(), cases.len(), "{console}");
        for (_, vcpus) in cases {
            assert!(console.contains(&format!("UP vcpus={vcpus} kernel={series}")), "{console}");
        }
        // However many vCPUs, they are cores of one socket.
        assert_eq!(console.matches("PACKAGES 1").count(), cases.len(), "{console}");
    }
}

/// Plain nested KVM needs no patch of ours: a host of this machine's own QEMU, which tests/scripts/setup
/// installs.
#[test]
fn a_host_of_an_unpatched_qemu_boots_a_kernel() {
    let lab = Lab::new(Host::Kvm).qemu("qemu-system-x86_64").timeout(Duration::from_secs(300));
    let Some(lab) = require_lab(lab) else { return };
    let guest = Guest::new("6.12", SCRIPT);
    let script = line(&guest, "vmlinuz", "power-off", "");
    let output = lab.run(&["sh", "-c", &script]).unwrap();
    let console = &output.console;
    assert!(console.contains("UP vcpus=1 kernel=6.12"), "{console}");
    assert!(console.contains("ENDED power-off 0"), "{console}");
    let refused = Lab::new(Host::Snp).qemu("qemu-system-x86_64").run(&["true"]).unwrap_err();
    assert!(refused.to_string().contains("made by a patch"), "{refused}");
}

/// The way that an encrypted guest takes: reset vector, config page, loader window, 64-bit entry.
#[test]
fn our_firmware_starts_kernels() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("7.2", SCRIPT);
    let image = guest.path("firmware");
    fs::write(&image, casemate_firmware_image::IMAGE).unwrap();
    let flags = format!("--vcpus 2 --firmware {}", image.display());
    let script = line(&guest, "vmlinuz", "power-off", &flags)
        + &line(&guest, "vmlinuz", "power-off", "--vcpus 2 --firmware-log true");
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(console.matches("UP vcpus=2 kernel=7.2").count(), 2, "{console}");
    assert_eq!(console.matches("ENDED power-off 0").count(), 2, "{console}");
    // The second is the image for development, which need not be named.
    assert_eq!(console.matches("firmware: starting the kernel").count(), 1, "{console}");
}

/// Without a PVH note an ELF kernel is entered in long mode, as a bzImage is. What it finds is the machine
/// that the book describes.
#[test]
fn elf_kernels_without_a_pvh_note_start_at_their_64_bit_entry() {
    if lab().is_none() {
        return;
    }
    for series in ["6.12", "7.2"] {
        let guest = Guest::new(series, SCRIPT);
        without_pvh_note(&guest);
        let script = line(&guest, "vmlinux", "machine", "--vcpus 2 --console true");
        let Some(output) = guest.in_lab(&script) else { return };
        let console = &output.console;
        assert!(console.contains(&format!("UP vcpus=2 kernel={series}")), "{console}");
        assert!(console.contains("ENDED machine 0"), "{console}");
        assert!(said(console, "ROUTING ").ends_with("x2apic"), "{console}");
        assert_eq!(said(console, "X2APIC "), "2", "{console}");
        let (time, clock) = said(console, "TIME ").split_once(' ').unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(time.parse().unwrap()) < 600, "{now}: {console}");
        assert_eq!(clock, "kvm-clock", "{console}");
        let interrupts = |of: &str| console.lines().filter(|line| line.contains(of)).count();
        for edge in ["IO-APIC 4-edge ttyS0", "IO-APIC 5-edge ACPI:Ged"] {
            assert_eq!(interrupts(edge), 1, "{console}");
        }
        // No timer, clock or keyboard of old; the devices' are messages: entropy and console have two
        // queues in use, and each one for its configuration.
        assert_eq!(interrupts("IO-APIC"), 2, "{console}");
        assert!(interrupts("PCI-MSIX-0000:00:01.0") >= 2, "{console}");
        assert!(interrupts("PCI-MSIX-0000:00:02.0") >= 3, "{console}");
    }
}

/// Makes the note that names the kernel's PVH entry one of no meaning: 4 bytes of name, 4 or 8 of
/// address, XEN_ELFNOTE_PHYS32_ENTRY (Xen, include/public/elfnote.h).
fn without_pvh_note(guest: &Guest) {
    let mut kernel = fs::read(guest.path("vmlinux")).unwrap();
    let notes: Vec<_> = (0..kernel.len() - 16)
        .step_by(4)
        .filter(|&at| kernel[at + 8..].starts_with(b"\x12\0\0\0Xen\0"))
        .collect();
    assert_eq!(notes.len(), 1, "the kernel's PVH notes are at {notes:x?}");
    kernel[notes[0] + 8] = 0xff;
    fs::write(guest.path("vmlinux"), kernel).unwrap();
}

#[test]
fn each_end_of_linux_has_its_status() {
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", SCRIPT);
    let mut script = String::new();
    // Linux resets in its own way (by BIOS here, as ACPI is hardware-reduced), and as it is told.
    let cases = [
        ("reset", "", 120),
        ("reset-acpi", "reboot=a", 120),
        ("reset-keyboard", "reboot=k", 120),
        ("reset-fault", "reboot=t", 122),
        ("panic", "", 121),
        ("status", "", 7),
    ];
    for (does, cmdline, _) in cases {
        script += &line(&guest, "vmlinux", &format!("{does} {cmdline}"), "");
    }
    let Some(output) = guest.in_lab(&script) else { return };
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
    if lab().is_none() {
        return;
    }
    let guest = Guest::new("6.12", SCRIPT);
    let command = guest.command("vmlinux", "casemate.do=button", "");
    let script = format!(
        "mkfifo /tmp/keys; script -qefc \"{command}\" /tmp/log </tmp/keys >/dev/null &\n\
         exec 3>/tmp/keys; until grep -q READY /tmp/log; do sleep 1; done\n\
         printf '\\001cstatus\\rpower-button\\r\\001c' >&3; wait $!; echo ENDED $?; cat /tmp/log"
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    for expected in ["exits so far", "pressed", "PRESSED"] {
        assert!(console.contains(expected), "{expected}: {console}");
    }
}
