//! `casemate measure tdx`, `measure snp --igvm` and `igvm`, as users and programs call them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;
use std::process::{Command, Output};

use casemate_test_support::vectors::{all, folder};
use serde_json::Value;

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = casemate(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).unwrap()
}

/// Refused: status 2, no digest, and these words.
fn refused(arguments: &[&str], words: &str) {
    let output = casemate(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty());
    assert!(message.contains(words), "{message}");
}

fn path(of: &Path) -> &str {
    of.to_str().unwrap()
}

#[test]
fn igvm_vectors() {
    for (kind, platform, key) in [("igvm-snp", "snp", "launch_digest"), ("igvm-tdx", "tdx", "mrtd")]
    {
        for vector in all(kind).unwrap() {
            let file = folder().join(vector["params"]["file"].as_str().unwrap());
            let mask = vector["params"]["compatibility_mask"].to_string();
            let arguments = ["measure", platform, "--igvm", path(&file)];
            let mask = ["--compatibility-mask", &mask, "--format", "hex"];
            let expected = vector["expected"][key].as_str().unwrap();
            assert_eq!(stdout(&[&arguments[..], &mask[..]].concat()), format!("{expected}\n"));
        }
    }
}

#[test]
fn tdx_json_has_what_it_promises() {
    let firmware = folder().join("inputs/tiny-tdx.fd");
    let arguments = ["measure", "tdx", "--firmware", path(&firmware), "--format", "json"];
    let report = json(&arguments);
    let vectors = all("tdx-mrtd").unwrap();
    let of = |id: &str| {
        let vector = vectors.iter().find(|vector| vector["id"] == id).unwrap();
        vector["expected"]["mrtd"].clone()
    };
    assert_eq!(report["platform"], "tdx");
    assert_eq!(report["page_order"], "per-page");
    assert_eq!(report["mrtd"], of("mrtd/tiny-tdx/per-page"));
    assert_eq!(report["measurement"], report["mrtd"]);
    assert_eq!(report["rtmr"], serde_json::json!([null, null, null, null]));
    assert_eq!(report["events"]["td-hob"], Value::Null);
    assert!(report["assumptions"].is_object());
    let other = ["--page-order", "two-pass", "--memory", "1G"];
    let report = json(&[&arguments[..], &other[..]].concat());
    assert_eq!(report["mrtd"], of("mrtd/tiny-tdx/two-pass"));
    assert!(report["events"]["td-hob"].is_string());
}

/// QEMU before 10.2 patches the kernel's header, which RTMR1 covers; the output names the rules.
#[test]
fn the_rules_of_a_launcher_are_chosen_by_version() {
    let (firmware, kernel) =
        (folder().join("inputs/tiny-tdx.fd"), folder().join("inputs/efi-stub-tiny.bin"));
    let guest = ["measure", "tdx", "--firmware", path(&firmware), "--kernel", path(&kernel)];
    let boot = ["--memory", "4G", "--cmdline", "console=ttyS0", "--format", "json"];
    let by = |vmm: &[&str]| json(&[&guest[..], &boot, vmm].concat());
    for (vmm, rules, rtmr1) in [
        (&[][..], "qemu:10.2", "bd294d48"),
        (&["--vmm", "qemu"], "qemu:10.2", "bd294d48"),
        (&["--vmm", "qemu:10.2"], "qemu:10.2", "bd294d48"),
        (&["--vmm", "qemu:10.1"], "qemu:10.1", "b80fd581"),
    ] {
        let report = by(vmm);
        assert_eq!(report["assumptions"]["vmm"], rules);
        assert!(report["rtmr"][1].as_str().unwrap().starts_with(rtmr1), "{report}");
    }
}

#[test]
fn the_manifest_ends_in_the_measurement() {
    let folder_ = tempfile::tempdir().unwrap();
    let list = folder_.path().join("manifest.json");
    let firmware = folder().join("inputs/tiny-tdx.fd");
    let igvm = folder().join("inputs/multi-platform.igvm");
    for arguments in [
        ["measure", "tdx", "--firmware", path(&firmware)],
        ["measure", "tdx", "--igvm", path(&igvm)],
        ["measure", "snp", "--igvm", path(&igvm)],
    ] {
        let more = ["--format", "json", "--manifest", path(&list)];
        let report = json(&[&arguments[..], &more[..]].concat());
        let manifest: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
        assert_eq!(manifest["measurement"], report["measurement"]);
        let last = manifest["ranges"].as_array().unwrap().last().unwrap();
        assert_eq!(last["running_digest"], report["measurement"]);
        assert!(last["tag"].is_string());
    }
}

#[test]
fn a_built_file_measures_as_its_firmware() {
    let folder_ = tempfile::tempdir().unwrap();
    let file = folder_.path().join("guest.igvm");
    let firmware = folder().join("inputs/tiny-tdx.fd");
    let build = ["igvm", "build", "--firmware", path(&firmware), "--platform", "tdx,plain"];
    let more = ["--memory", "1G", "--format", "json", "--out", path(&file)];
    let built = json(&[&build[..], &more[..]].concat());
    let firmware = ["measure", "tdx", "--firmware", path(&firmware), "--format", "json"];
    assert_eq!(built[0]["measurement"], json(&firmware)["mrtd"]);
    let measured = json(&["igvm", "measure", path(&file), "--format", "json"]);
    assert_eq!(measured[0]["platform"], "tdx");
    assert_eq!(measured[0]["measurement"], built[0]["measurement"]);
    assert_eq!(measured[1]["measurement"], Value::Null);
    let listed = json(&["igvm", "inspect", path(&file), "--format", "json"]);
    assert_eq!(listed[0]["items"][0]["what"], "guest policy");
    assert!(stdout(&["igvm", "inspect", path(&file)]).starts_with("tdx (compatibility mask 0x1)"));

    let firmware = folder().join("inputs/tiny-std.fd");
    let build = ["igvm", "build", "--firmware", path(&firmware), "--platform", "snp"];
    let more = ["--vcpu-type", "EPYC-Milan", "--out", path(&file)];
    stdout(&[&build[..], &more[..]].concat());
    let ch = ["measure", "snp", "--igvm", path(&file), "--vmm", "cloud-hypervisor"];
    // IGVM has no ZERO pages, but a launcher with a word for them gives the firmware's own digest.
    let native = ["measure", "snp", "--igvm", path(&file), "--zero-pages", "native"];
    let own = ["measure", "snp", "--firmware", path(&firmware), "--vcpus", "1"];
    let own = [&own[..], &["--vcpu-type", "EPYC-Milan", "--format", "hex"]].concat();
    assert_eq!(stdout(&[&native[..], &["--format", "hex"]].concat()), stdout(&own));
    assert_eq!(stdout(&[&ch[..], &["--format", "hex"]].concat()), stdout(&own));
}

/// What the file measures to is what the same guest has without it.
#[test]
fn our_own_firmware_becomes_a_file() {
    let folder_ = tempfile::tempdir().unwrap();
    let file = folder_.path().join("guest.igvm");
    let kernel = folder().join("inputs/kernel-tiny.bin");
    let boot = ["--kernel", path(&kernel), "--append", "console=ttyS0"];
    let build = ["igvm", "build", "--out", path(&file), "--format", "json"];
    let built = json(&[&build[..], &boot[..]].concat());
    // So much a guest of the file may have, unless it is told otherwise.
    let all = ["--memory", "2G", "--format", "json"];
    let direct = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1"];
    let direct = json(&[&direct[..], &all[..], &boot[..]].concat());
    assert_eq!(built[0]["measurement"], direct["measurement"]);
    let measured = json(&["igvm", "measure", path(&file), "--format", "json"]);
    assert_eq!(measured[0]["digests"]["kvm"], direct["measurement"]);
    let direct = json(&[&["measure", "tdx"], &all[..], &boot[..]].concat());
    assert_eq!((&built[1]["platform"], &built[2]["platform"]), (&"tdx".into(), &"plain".into()));
    assert_eq!(built[1]["measurement"], direct["mrtd"]);
    assert_eq!(measured[1]["measurement"], direct["mrtd"]);
    let limited = [&build[..], &["--memory", "1G", "--vcpus", "3"], &boot[..]].concat();
    let other = json(&limited);
    let of_three = ["measure", "tdx", "--memory", "1G", "--vcpus", "3", "--format", "json"];
    assert_eq!(other[1]["measurement"], json(&[&of_three[..], &boot[..]].concat())["mrtd"]);
    refused(&build, "add --kernel");
    let ovmf = folder().join("inputs/tiny-std.fd");
    let ovmf = [&build[..], &boot[..], &["--firmware", path(&ovmf)]].concat();
    refused(&ovmf, "leave --kernel out");
}

#[test]
fn refusals_say_file_offset_and_reason() {
    let input = |name: &str| folder().join("inputs").join(name);
    let (std, igvm) = (input("tiny-std.fd"), input("multi-platform.igvm"));
    refused(&["measure", "tdx", "--firmware", path(&std)], "does not have a TDX metadata entry");
    refused(&["measure", "tdx", "--igvm", path(&std)], "not an IGVM file");
    refused(&["measure", "tdx", "--firmware", path(&input("bad-empty.fd"))], "bad-empty.fd");
    refused(
        &["measure", "snp", "--igvm", path(&igvm), "--compatibility-mask", "2"],
        "compatibility mask 0x2 selects TDX, not SEV-SNP",
    );
    refused(
        &["measure", "tdx", "--igvm", path(&igvm), "--page-order", "two-pass"],
        "no two-pass order",
    );
    refused(&["igvm", "measure", path(&std)], "tiny-std.fd: not an IGVM file");
    refused(
        &["measure", "snp", "--igvm", path(&input("tdx-only.igvm"))],
        "does not support SEV-SNP",
    );
    let (kernel, tdx) = (input("kernel-tiny.bin"), input("tiny-tdx.fd"));
    let boot = ["measure", "tdx", "--firmware", path(&tdx), "--memory", "2G", "--kernel"];
    refused(&[&boot[..], &[path(&kernel)]].concat(), "kernel-tiny.bin cannot be measured");
}
