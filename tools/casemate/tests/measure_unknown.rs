//! `casemate measure` of guests of which something is not at hand: the firmware, the launcher, or
//! everything but a report.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/golden.rs"]
mod golden;

use std::path::Path;
use std::process::{Command, Output};

use casemate_test_support::vectors::{all, folder};
use serde_json::Value;

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap()
}

/// Standard output of a command that succeeds.
fn stdout(arguments: &[&str]) -> String {
    let output = casemate(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn hex(arguments: &[&str]) -> String {
    stdout(&[arguments, &["--format", "hex"]].concat()).trim().to_owned()
}

/// Standard error of a command that ends with status 2 and prints nothing.
fn refused(arguments: &[&str]) -> String {
    let output = casemate(arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn input(name: &str) -> String {
    folder().join("inputs").join(name).to_str().unwrap().to_owned()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The report about one guest of a firmware is enough to measure others, without the image.
#[test]
fn published_firmware_digest_measures_any_guest_of_the_firmware() {
    let temporary = tempfile::tempdir().unwrap();
    let mut count = 0;
    for vector in all("snp-launch-digest").unwrap() {
        let params = &vector["params"];
        let text = |name: &str| params[name].as_str();
        let is_small = |name: &str| text(name).is_none_or(|input| !input.contains("-b"));
        let Some(firmware) = text("firmware").filter(|name| name.starts_with("tiny")) else {
            continue;
        };
        if text("kernel").is_some_and(|kernel| kernel != "kernel-tiny") || !is_small("initrd") {
            continue;
        }
        let image = input(&format!("{firmware}.fd"));
        let one = ["measure", "snp", "--firmware", &image, "--vcpus", "1", "--vcpu-type", "EPYC"];
        let report = stdout(&[&one[..], &["--format", "json"]].concat());
        let published = write(temporary.path(), "firmware.json", report.as_bytes());

        let vcpus = params["vcpus"].to_string();
        let mut guest = vec!["measure", "snp", "--firmware-digest", &published];
        guest.extend(["--vcpus", &vcpus, "--vcpu-type", text("vcpu_type").unwrap()]);
        guest.extend(["--vmm", text("vmm").unwrap()]);
        guest.extend(["--guest-features", text("guest_features").unwrap()]);
        let (kernel, initrd) = (input("kernel-tiny.bin"), input("initrd-a.bin"));
        if text("kernel").is_some() {
            guest.extend(["--kernel", &kernel]);
        }
        if text("initrd").is_some() {
            guest.extend(["--initrd", &initrd]);
        }
        if let Some(line) = text("cmdline") {
            guest.extend(["--cmdline", line]);
        }
        let expected = vector["expected"]["launch_digest"].as_str().unwrap();
        assert_eq!(hex(&guest), expected, "{}", vector["id"]);
        count += 1;
    }
    assert!(count > 28, "{count}");
}

#[test]
fn firmware_digest_that_is_none_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let guest = |file: &str| {
        refused(&[
            "measure",
            "snp",
            "--vcpus",
            "1",
            "--vcpu-type",
            "EPYC",
            "--firmware-digest",
            file,
        ])
    };
    let file = |text: &str| write(temporary.path(), "firmware.json", text.as_bytes());
    assert!(guest(&file("{}")).contains("is not a firmware digest"));
    let own = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--kernel"];
    let kernel = write(temporary.path(), "kernel", &golden::kernel());
    let report = stdout(&[&own[..], &[&kernel, "--format", "json"]].concat());
    assert!(guest(&file(&report)).contains("names no sections"));
    let list = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--firmware-digest"];
    assert!(refused(&[&list[..], &[&file(&report)]].concat()).contains("serves other guests"));
}

#[test]
fn svsm_beside_its_firmware_is_measured() {
    let (firmware, svsm) = (input("tiny-std.fd"), input("tiny-svsm.bin"));
    for vector in all("snp-svsm").unwrap() {
        let params = &vector["params"];
        let (vcpus, size) = (params["vcpus"].to_string(), params["variables_size"].to_string());
        let guest = ["measure", "snp", "--firmware", &firmware, "--svsm", &svsm, "--vcpus", &vcpus];
        let more =
            ["--variables-size", &size, "--vcpu-type", params["vcpu_type"].as_str().unwrap()];
        let guest = [&guest[..], &more].concat();
        assert_eq!(hex(&guest), vector["expected"]["launch_digest"].as_str().unwrap());
        let other = refused(&[&guest[..], &["--vmm", "ec2"]].concat());
        assert!(other.contains("only QEMU launches an SVSM"), "{other}");
    }
}

/// A report or a quote that has this measurement.
fn with_measurement(name: &str, at: usize, measurement: &str) -> Vec<u8> {
    let mut bytes = casemate_test_support::evidence::file(name).unwrap();
    for (byte, digits) in bytes[at..at + 48].iter_mut().zip(measurement.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap();
        *byte = u8::from_str_radix(digits, 16).unwrap();
    }
    bytes
}

fn explanation(arguments: &[&str]) -> Value {
    let text = stdout(&[arguments, &["--format", "json"]].concat());
    serde_json::from_str::<Value>(&text).unwrap()["explanation"].clone()
}

#[test]
fn search_explains_guests_of_our_firmware() {
    let temporary = tempfile::tempdir().unwrap();
    let kernel = write(temporary.path(), "kernel", &golden::kernel());
    for (platform, evidence, at, keys) in [
        ("snp", "snp/dstack-milan/report.bin", 0x90, "accept_memory = \"eager\"\n"),
        ("tdx", "tdx/gotdx-cos113/quote.bin", 48 + 136, ""),
    ] {
        let text = format!(
            "kernel = \"{kernel}\"\ncmdline = \"quiet\"\nvcpus = 3\nmemory = \"2G\"\n\
             platform = \"{platform}\"\n{keys}"
        );
        let guest = write(temporary.path(), "guest.toml", text.as_bytes());
        let report = with_measurement(evidence, at, &hex(&["measure", &guest]));
        let report = write(temporary.path(), "report.bin", &report);
        let known = ["--kernel", &kernel, "--cmdline", "quiet", "--memory", "2G"];
        let found = explanation(&[&["measure", "--search", &report], &known[..]].concat());
        assert_eq!((&found["vmm"], &found["vcpus"]), (&"casemate".into(), &3.into()), "{found}");
        assert_eq!(found["memory"], 2_u64 << 30);
        assert_eq!(found["accept_memory"], if platform == "snp" { "eager" } else { "lazy" });
        assert_eq!(found["firmware_log"], false);
        assert_eq!(found["kernel"], "with the command line as given");
    }
}

#[test]
fn search_explains_guests_of_igvm_files_by_their_launcher() {
    let temporary = tempfile::tempdir().unwrap();
    let igvm = input("zero-unmeasured.igvm");
    let mut digests = Vec::new();
    for (launcher, other) in [("qemu", "cloud-hypervisor"), ("cloud-hypervisor", "qemu")] {
        let digest = hex(&["measure", "snp", "--igvm", &igvm, "--vmm", launcher]);
        let report = with_measurement("snp/dstack-milan/report.bin", 0x90, &digest);
        let report = write(temporary.path(), "report.bin", &report);
        let found = explanation(&["measure", "--search", &report, "--igvm", &igvm]);
        assert_eq!(found["vmm"], launcher, "not {other}: {found}");
        digests.push(digest);
    }
    assert_ne!(digests[0], digests[1]);
}
