//! What else than our firmware with a kernel starts an SEV-SNP guest of `casemate run`: OVMF, and IGVM
//! files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;

use casemate_lab::{Host, require};
use casemate_test_support::vectors;
use confidential::{CMDLINE, Guest, casemate, predicted, said, sha256, with_another_kernel};

/// OVMF from Debian's package, as a file of a guest's. `None` if it cannot be had.
fn ovmf(guest: &Guest) -> Option<String> {
    let ovmf = vectors::firmware("ovmf-sid-amdsev").unwrap()?;
    Some(guest.write("ovmf", ovmf))
}

/// It measures as QEMU's guests do, and is told of its kernel, processors and devices as they are.
#[test]
fn ovmf_starts_a_kernel_that_it_has_measured() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "7.2");
    let Some(ovmf) = ovmf(&guest) else { return };
    let (disk, contents) = guest.disk();
    let model = guest.write("model.toml", "[snp]\nvcpu_type = \"EPYC-Genoa\"\n");
    let script = guest.line(&format!("--vcpu-type host --firmware {ovmf} --vcpus 4 --disk {disk}"))
        // Its measurement counts; the guest itself is ended.
        + &guest.line_until("expected measurement", &format!("--firmware {ovmf} {model}"));
    let Some(output) = guest.in_lab_with("7.2", &script) else { return };
    let (console, model) =
        output.console.split_once("ENDED 0").unwrap_or_else(|| panic!("{}", output.console));
    assert!(console.contains("UP vcpus=4 kernel=7.2"), "{console}");
    predicted(console, 0);
    assert_eq!(said(console, "DISK ", 0), sha256(&contents), "{console}");
    let as_qemu = |vcpus, model| {
        let kernel = ["--kernel", &guest.path("vmlinuz"), "--initrd", &guest.path("initrd")];
        let machine = ["--vcpus", vcpus, "--vcpu-type", model, "--append", CMDLINE];
        let measure = ["measure", "snp", "--firmware", &ovmf, "--format", "hex"];
        casemate(&[&measure[..], &kernel, &machine].concat())
    };
    // The emulated host's processor.
    assert_eq!(said(console, "MEASUREMENT ", 0), as_qemu("4", "EPYC-Milan"));
    assert_eq!(said(model, "expected measurement ", 0), as_qemu("1", "EPYC-Genoa"), "{model}");
}

/// From a disk, with a boot loader of systemd's: as a plain OVMF, and as one in an IGVM file.
#[test]
fn ovmf_boots_a_disk() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let Some(ovmf) = ovmf(&guest) else { return };
    let (disk, contents) = guest.disk();
    let (boot, file) = (guest.boot_disk(), guest.path("ovmf.igvm"));
    let build = ["igvm", "build", "--firmware", &ovmf, "--platform", "snp", "--out", &file];
    casemate(&[&build[..], &["--vcpu-type", "EPYC-Milan"]].concat());
    let disks = format!("--disk {disk} --disk {boot}");
    let script = guest.other_line(&format!("--vcpu-type host --firmware {ovmf} {disks}"))
        + &guest.other_line(&format!("--igvm {file} {disks}"));
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(console.matches("ENDED 0").count(), 2, "{console}");
    predicted(console, 0);
    predicted(console, 1);
    assert_eq!(said(console, "DISK ", 0), sha256(&contents), "{console}");
    let file = casemate(&["measure", "snp", "--igvm", &file, "--format", "hex"]);
    assert_eq!(said(console, "MEASUREMENT ", 1), file, "{console}");
}

/// Our firmware in an IGVM file brings its kernel. That one is not measured, but its hash is: with
/// another kernel the guest has the same measurement, and ends.
#[test]
fn an_igvm_file_brings_a_kernel_that_the_firmware_checks() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let (good, kernel) = (guest.path("good.igvm"), guest.path("vmlinuz"));
    let payloads = ["--kernel", &kernel, "--initrd", &guest.path("initrd"), "--append", CMDLINE];
    casemate(&[&["igvm", "build", "--platform", "snp", "--out", &good], &payloads[..]].concat());
    let other = guest.write("other.igvm", with_another_kernel(&good, &kernel));
    let script =
        guest.other_line(&format!("--igvm {good}")) + &guest.other_line(&format!("--igvm {other}"));
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let (good, other) = console.split_once("ENDED 0").unwrap_or_else(|| panic!("{console}"));
    predicted(good, 0);
    assert_eq!(said(other, "expected measurement ", 0), said(good, "MEASUREMENT ", 0));
    assert!(!other.contains("UP vcpus"), "{other}");
    assert!(other.contains("is not the measured one") && other.contains("ENDED 124"), "{other}");
}
