//! What else than our firmware with a kernel starts an SEV-SNP guest of `casemate run`: OVMF, and IGVM
//! files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/snp.rs"]
mod snp;

use std::fs;
use std::path::Path;
use std::process::Command;

use casemate_lab::packages::Packages;
use casemate_lab::{Host, require};
use casemate_tests::disk;
use casemate_tests::vectors::Inputs;
use snp::{CIPHERS, CMDLINE, guest, in_lab, line, other_line, predicted, said, sha256};

/// What `casemate` prints.
fn casemate(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// OVMF from Debian's package, and a folder with a guest and a disk. `None` if OVMF cannot be had.
fn with_ovmf(series: &str, ciphers: &[&str]) -> Option<(tempfile::TempDir, Vec<u8>)> {
    let folder = guest(series, ciphers);
    let ovmf = Inputs::open().unwrap().get("ovmf-sid-amdsev").unwrap()?;
    fs::write(folder.path().join("ovmf"), ovmf).unwrap();
    let contents: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    fs::write(folder.path().join("disk"), &contents).unwrap();
    Some((folder, contents))
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// It measures as QEMU's guests do, and is told of its kernel, processors and devices as they are.
#[test]
fn ovmf_starts_a_kernel_that_it_has_measured() {
    if require(Host::Snp).is_none() {
        return;
    }
    let Some((folder, contents)) = with_ovmf("7.2", &[]) else { return };
    let path = |name| path(folder.path(), name);
    let ovmf = path("ovmf");
    fs::write(path("model.toml"), "[snp]\nvcpu_type = \"EPYC-Genoa\"\n").unwrap();
    let flags = format!("--firmware {ovmf} --vcpus 4 --disk {}", path("disk"));
    let script = line(folder.path(), &flags)
        // Stopped before it does anything: what counts is what it measures to.
        + &line(folder.path(), &format!("--firmware {ovmf} {}", path("model.toml")))
            .replace("timeout 150", "timeout 2");
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let (console, model) =
        output.console.split_once("ENDED 0").unwrap_or_else(|| panic!("{}", output.console));
    assert!(console.contains("UP vcpus=4 kernel=7.2"), "{console}");
    predicted(console, 0);
    assert_eq!(said(console, "DISK ", 0), sha256(&contents), "{console}");
    let as_qemu = |vcpus, model| {
        let kernel = ["--kernel", &path("vmlinuz"), "--initrd", &path("initrd")];
        let guest = ["--vcpus", vcpus, "--vcpu-type", model, "--append", CMDLINE];
        let measure = ["measure", "snp", "--firmware", &ovmf, "--format", "hex"];
        casemate(&[&measure[..], &kernel, &guest].concat())
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
    let Some((folder, contents)) = with_ovmf("6.12", CIPHERS) else { return };
    let path = |name| path(folder.path(), name);
    let [kernel, initrd] = ["vmlinuz", "initrd"].map(|name| fs::read(path(name)).unwrap());
    let packages = Packages::open().unwrap();
    let bootable = disk::bootable(&packages, &kernel, &initrd, "console=ttyS0 quiet panic=-1");
    fs::write(path("boot"), bootable.unwrap()).unwrap();
    let (ovmf, file) = (path("ovmf"), path("ovmf.igvm"));
    let build = ["igvm", "build", "--firmware", &ovmf, "--platform", "snp", "--out", &file];
    casemate(&[&build[..], &["--vcpu-type", "EPYC-Milan"]].concat());
    let disks = format!("--disk {} --disk {}", path("disk"), path("boot"));
    let script = other_line(&format!("--firmware {ovmf} {disks}"))
        + &other_line(&format!("--igvm {file} {disks}"));
    let Some(output) = in_lab(&script, folder.path()) else { return };
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
    let folder = guest("6.12", CIPHERS);
    let path = |name| path(folder.path(), name);
    let (good, other) = (path("good.igvm"), path("other.igvm"));
    let kernel = ["--kernel", &path("vmlinuz"), "--initrd", &path("initrd"), "--append", CMDLINE];
    casemate(&[&["igvm", "build", "--platform", "snp", "--out", &good], &kernel[..]].concat());
    let mut file = fs::read(&good).unwrap();
    let image = fs::read(path("vmlinuz")).unwrap();
    let at = file.windows(4096).position(|window| window == &image[0x1000..0x2000]).unwrap();
    file[at] ^= 1;
    fs::write(&other, file).unwrap();
    let script =
        other_line(&format!("--igvm {good}")) + &other_line(&format!("--igvm {other} --vcpus 1"));
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    let (good, other) = console.split_once("ENDED 0").unwrap_or_else(|| panic!("{console}"));
    predicted(good, 0);
    assert_eq!(said(other, "expected measurement ", 0), said(good, "MEASUREMENT ", 0));
    assert!(!other.contains("UP vcpus"), "{other}");
    assert!(other.contains("the firmware ended the guest: "), "{other}");
    assert!(other.contains("is not the measured one") && other.contains("ENDED 124"), "{other}");
}
