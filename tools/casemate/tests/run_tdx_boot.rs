//! What else than our firmware with a kernel starts a TDX guest of `casemate run`: OVMF, and IGVM
//! files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;

use casemate_lab::{Host, require};
use casemate_test_support::vectors;
use confidential::{
    CMDLINE, Guest, casemate, predicted_mrtds, said, sha256, with_another_kernel, written,
};

/// OVMF from a package of Debian's, as a file of a guest's. `None` if it cannot be had.
fn ovmf(guest: &Guest, package: &str) -> Option<String> {
    let ovmf = vectors::firmware(package).unwrap()?;
    Some(guest.write("ovmf", ovmf))
}

/// OVMF without secure boot: with it, it starts no kernel whose signer it does not know.
///
/// What OVMF and the kernel measure is what `casemate measure` says that they do in QEMU's machine.
#[test]
fn ovmf_starts_a_kernel_with_the_predicted_registers() {
    if require(Host::Tdx).is_none() {
        return;
    }
    for series in ["7.2", "6.12"] {
        let guest = Guest::new(Host::Tdx, series);
        let Some(ovmf) = ovmf(&guest, "ovmf-trixie") else { return };
        let (disk, contents) = guest.disk();
        let script = guest.line(&format!("--firmware {ovmf} --vcpus 2 --disk {disk}"))
            + &guest.line(&format!("--firmware {ovmf}"));
        let Some(output) = guest.in_lab(&script) else { return };
        let console = &output.console;
        for vcpus in [2, 1] {
            let up = format!("UP vcpus={vcpus} kernel={series}");
            assert!(console.contains(&up), "{console}\n{}", output.platform_log);
        }
        assert_eq!(console.matches("active: Intel TDX").count(), 2, "{console}");
        assert_eq!(said(console, "DISK ", 0), sha256(&contents), "{console}");
        let kernel = ["--kernel", &guest.path("vmlinuz"), "--initrd", &guest.path("initrd")];
        let machine = ["--memory", "192M", "--append", CMDLINE];
        let measured = measured("--firmware", &ovmf, &[kernel, machine].concat());
        assert_eq!(predicted_mrtds(&output), [measured["mrtd"].as_str().unwrap()]);
        // Where the kernel shows them.
        for register in if series == "7.2" { &[1, 2][..] } else { &[] } {
            let expected = measured["rtmr"][register].as_str().unwrap();
            let name = format!("REGISTER rtmr{register}:sha384 ");
            assert_eq!(said(console, &name, 0), expected, "{console}");
        }
    }
}

/// What `casemate measure` says of a firmware or an IGVM file.
fn measured(what: &str, file: &str, more: &[&str]) -> serde_json::Value {
    let measure = ["measure", "tdx", what, file, "--format", "json"];
    serde_json::from_str(&casemate(&[&measure[..], more].concat())).unwrap()
}

/// From a disk, as a plain OVMF and as one in an IGVM file.
#[test]
fn ovmf_with_secure_boot_starts_what_is_signed() {
    if require(Host::Tdx).is_none() {
        return;
    }
    let guest = Guest::new(Host::Tdx, "6.12");
    let Some(ovmf) = ovmf(&guest, "ovmf-sid-inteltdx") else { return };
    let (disk, contents) = guest.disk();
    let (boot, file) = (guest.boot_disk(), guest.path("ovmf.igvm"));
    let build = ["igvm", "build", "--firmware", &ovmf, "--platform", "tdx", "--out", &file];
    casemate(&[&build[..], &["--memory", "192M"]].concat());
    let disks = format!("--disk {disk} --disk {boot}");
    let script = guest.other_line(&format!("--firmware {ovmf} {disks}"))
        + &guest.other_line(&format!("--igvm {file} {disks}"));
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert_eq!(console.matches("ENDED 0").count(), 2, "{console}");
    assert_eq!(console.matches("UP vcpus=1 kernel=6.12").count(), 2, "{console}");
    assert_eq!(said(console, "DISK ", 0), sha256(&contents), "{console}");
    assert_eq!(said(console, "DISK ", 1), sha256(&written(&contents)), "{console}");
    // The file has the firmware's pages in the order of the firmware: it is the same guest.
    let plain = measured("--firmware", &ovmf, &["--memory", "192M"]);
    assert_eq!(predicted_mrtds(&output), [plain["mrtd"].as_str().unwrap()]);
}

/// Our firmware in an IGVM file brings its kernel. That one is not measured, but its hash is: with
/// another kernel the guest has the same measurement, and ends.
#[test]
fn an_igvm_file_brings_a_kernel_that_the_firmware_checks() {
    if require(Host::Tdx).is_none() {
        return;
    }
    for series in ["6.12", "7.2"] {
        let guest = Guest::new(Host::Tdx, series);
        let (good, kernel) = (guest.path("good.igvm"), guest.path("vmlinuz"));
        let payloads =
            ["--kernel", &kernel, "--initrd", &guest.path("initrd"), "--append", CMDLINE];
        let build = ["igvm", "build", "--platform", "tdx", "--vcpus", "2", "--out", &good];
        casemate(&[&build[..], &payloads].concat());
        let other = guest.write("other.igvm", with_another_kernel(&good, &kernel));
        let script = guest.other_line(&format!("--igvm {good} --vcpus 2"))
            + &guest.other_line(&format!("--igvm {good}"))
            + &guest.other_line(&format!("--igvm {other}"));
        let Some(output) = guest.in_lab(&script) else { return };
        let console = &output.console;
        let (good_ones, other) =
            console.rsplit_once("ENDED 0").unwrap_or_else(|| panic!("{console}"));
        for vcpus in [2, 1] {
            let up = format!("UP vcpus={vcpus} kernel={series}");
            assert!(good_ones.contains(&up), "{console}");
        }
        let file = measured("--igvm", &good, &[]);
        assert_eq!(predicted_mrtds(&output), [file["mrtd"].as_str().unwrap()]);
        assert!(!other.contains("UP vcpus"), "{other}");
        assert!(other.contains("is not the measured one"), "{other}");
        assert!(other.contains("ENDED 124"), "{other}");
    }
}
