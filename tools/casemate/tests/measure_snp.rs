//! `casemate measure snp`, `measure GUEST.toml`, `--diff`, `--search`, `explain` and `id-block`, as
//! users and programs call them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;
use std::process::{Command, Output};

use casemate_test_support::vectors::{Inputs, all, folder};
use serde_json::Value;

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap()
}

/// Standard output, when the exit status is this one.
fn stdout(status: i32, arguments: &[&str]) -> String {
    let output = casemate(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(0, &[arguments, &["--format", "json"]].concat())).unwrap()
}

/// Refused: status 2, no digest, and these words.
fn refused(arguments: &[&str], words: &str) {
    let output = casemate(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty() && !message.contains("panicked"), "{message}");
    assert!(message.contains(words), "{message}");
}

fn input(name: &str) -> String {
    folder().join("inputs").join(name).to_str().unwrap().to_owned()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The options of a vector that has only generated inputs.
fn options(vector: &Value) -> Option<Vec<String>> {
    let params = &vector["params"];
    let text = |name: &str| params[name].as_str();
    let firmware = text("firmware").filter(|name| name.starts_with("tiny"))?;
    let named = |name: &str| format!("--{name}");
    let mut list = vec![named("firmware"), input(&format!("{firmware}.fd"))];
    list.extend([named("vcpus"), params["vcpus"].to_string()]);
    list.extend([named("vcpu-type"), text("vcpu_type")?.to_owned()]);
    list.extend([named("guest-features"), text("guest_features")?.to_owned()]);
    list.extend([named("vmm"), text("vmm")?.to_owned()]);
    for (name, option) in [("kernel", "kernel"), ("initrd", "initrd")] {
        match text(name) {
            Some(value) if value.ends_with("-b") || value.starts_with("linux") => return None,
            Some(value) => list.extend([named(option), input(&format!("{value}.bin"))]),
            None => {}
        }
    }
    if let Some(cmdline) = text("cmdline") {
        list.extend([named("append"), cmdline.to_owned()]);
    }
    Some(list)
}

#[test]
fn every_vector_with_generated_inputs_by_the_command_line() {
    let mut count = 0;
    for vector in all("snp-launch-digest").unwrap() {
        let Some(options) = options(&vector) else { continue };
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let all = [&["measure", "snp", "--format", "hex"], &options[..]].concat();
        let expected = vector["expected"]["launch_digest"].as_str().unwrap();
        assert_eq!(stdout(0, &all), format!("{expected}\n"), "{}", vector["id"]);
        count += 1;
    }
    assert!(count > 28, "{count}");
}

#[test]
fn json_table_and_manifest_have_what_they_promise() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("manifest.json");
    let firmware = input("tiny-std.fd");
    let common = ["measure", "snp", "--firmware", &firmware, "--vcpus", "2"];
    let milan = [&common[..], &["--vcpu-type", "EPYC-Milan"]].concat();
    let report = json(&[&milan[..], &["--manifest", manifest.to_str().unwrap()]].concat());
    assert_eq!(report["platform"], "snp");
    assert_eq!(report["measurement"].as_str().unwrap().len(), 96);
    let seed = &all("snp-firmware-seed").unwrap()[2]["expected"]["launch_digest"];
    assert_eq!(&report["firmware_seed"], seed);
    assert_eq!(report["assumptions"]["vcpus"], 2);
    assert_eq!(report["assumptions"]["vcpu_signature"], "0x00a00f11");
    assert_eq!(report["assumptions"]["guest_features"], "0x1");
    assert!(!report["assumptions"]["host_rules"].as_array().unwrap().is_empty());

    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    assert_eq!(manifest["measurement"], report["measurement"]);
    let ranges = manifest["ranges"].as_array().unwrap();
    assert_eq!(ranges.len(), 1 + 7 + 2);
    assert_eq!(ranges[0]["running_digest"], *seed);
    assert_eq!(ranges[0]["address"], "0xffffe000");
    assert_eq!(ranges[9]["kind"], "vmsa");
    assert_eq!(ranges[9]["running_digest"], report["measurement"]);

    let signature = [&common[..], &["--vcpu-signature", "0x00a00f11"]].concat();
    assert_eq!(json(&signature), report);
    let table = stdout(0, &milan);
    assert!(table.starts_with("measurement") && table.contains("0x00a00f11"), "{table}");
}

#[test]
fn what_cannot_be_measured_truthfully_is_refused() {
    let inputs = Inputs::open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for vector in all("snp-refuse").unwrap() {
        let params = &vector["params"];
        let Some(firmware) = inputs.get(params["firmware"].as_str().unwrap()).unwrap() else {
            continue;
        };
        let firmware = write(folder.path(), "firmware.fd", &firmware);
        let vcpus = params["vcpus"].to_string();
        let mut list = vec!["measure", "snp", "--firmware", &firmware, "--vcpus", &vcpus];
        list.extend(["--vcpu-type", "EPYC-v4", "--format", "hex"]);
        let kernel = input("kernel-tiny.bin");
        if params["kernel"].is_string() {
            list.extend(["--kernel", &kernel]);
        }
        refused(&list, "firmware.fd cannot be measured");
    }
    let firmware = input("tiny-std.fd");
    let with = |more: &[&str], words: &str| {
        refused(
            &[&["measure", "snp", "--firmware", &firmware, "--vcpus", "1"], more].concat(),
            words,
        );
    };
    with(&[], "add --vcpu-type");
    with(&["--vcpu-type", "host"], "known are EPYC");
    with(&["--vcpu-type", "EPYC", "--append", "a"], "--kernel");
    with(&["--vmm", "casemate"], "not Casemate's firmware");
    with(&["--vmm", "cloud-hypervisor"], "from IGVM files");
    with(&["--vmm", "casemate", "--kernel", &firmware], "not Casemate's firmware");
    refused(
        &["measure", "snp", "--firmware", "/nowhere", "--vcpus", "1", "--vmm", "gce"],
        "/nowhere",
    );
    refused(&["measure", "snp", "--firmware", &firmware, "--vcpus", "0"], "--vcpus");
    refused(&["measure", "snp", "--vcpus", "1"], "--firmware is needed");
}

#[test]
fn a_guest_is_measured_on_every_platform_that_it_allows() {
    let folder = tempfile::tempdir().unwrap();
    let firmware = input("tiny-tdx.fd");
    let text = |platform: &str| {
        format!(
            "firmware = \"{firmware}\"\nvcpus = 3\nmemory = \"2G\"\nplatform = \"{platform}\"\n"
        )
    };
    let auto = write(folder.path(), "auto.toml", text("auto").as_bytes());
    let list = json(&["measure", &auto, "--vcpu-type", "EPYC-Milan"]);
    let snp = json(&[
        "measure",
        "snp",
        "--firmware",
        &firmware,
        "--vcpus",
        "3",
        "--vcpu-type",
        "EPYC-Milan",
    ]);
    let tdx = json(&["measure", "tdx", "--firmware", &firmware, "--memory", "2G"]);
    assert_eq!(list[0]["measurement"], snp["measurement"]);
    assert_eq!(list[1]["mrtd"], tdx["mrtd"]);

    let list = json(&["measure", &auto]);
    assert_eq!(list[0]["measurement"], Value::Null);
    assert!(list[0]["reason"].as_str().unwrap().contains("--vcpu-type"));
    let hex = stdout(0, &["measure", &auto, "--platform", "tdx", "--format", "hex"]);
    assert_eq!(hex.trim(), tdx["mrtd"].as_str().unwrap());
    refused(&["measure", &auto, "--vcpu-type", "EPYC-Milan", "--format", "hex"], "add --platform");
    let snp_only = write(folder.path(), "snp.toml", text("snp").as_bytes());
    refused(&["measure", &snp_only, "--platform", "tdx"], "does not allow this platform");
    refused(&["measure", "/nowhere.toml"], "/nowhere.toml");

    // Casemate's own firmware, whose digest does not depend on the CPU model.
    let kernel = input("kernel-tiny.bin");
    let own = format!("kernel = \"{kernel}\"\ncmdline = \"quiet\"\nplatform = \"snp\"\n");
    let own = json(&["measure", &write(folder.path(), "own.toml", own.as_bytes())]);
    let flags = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--kernel", &kernel];
    let flags = json(&[&flags[..], &["--append", "quiet"]].concat());
    assert_eq!(own[0]["measurement"], flags["measurement"]);
    assert_eq!(flags["assumptions"]["vcpu_signature"], Value::Null);
}

/// Whoever reads a measurement can tell that the firmware does something else than usual, and so does
/// the measurement.
#[test]
fn options_of_the_firmware_are_measured() {
    let (folder, kernel) = (tempfile::tempdir().unwrap(), input("kernel-tiny.bin"));
    let mut digests = Vec::new();
    for (key, flags) in [
        ("", &[][..]),
        ("accept_memory = \"eager\"", &["--accept-memory", "eager"]),
        ("firmware_log = true", &["--firmware-log"]),
    ] {
        let text = format!("kernel = \"{kernel}\"\ncmdline = \"\"\nmemory = \"1G\"\n{key}\n");
        let config = write(folder.path(), "guest.toml", text.as_bytes());
        let by_file = json(&["measure", &config]);
        let snp = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--memory", "1G"];
        let snp = [&snp[..], &["--kernel", &kernel]].concat();
        let tdx = ["measure", "tdx", "--memory", "1G", "--kernel", &kernel];
        for (at, command) in [&snp[..], &tdx].into_iter().enumerate() {
            let by_flags = json(&[command, flags].concat());
            assert_eq!(by_file[at]["measurement"], by_flags["measurement"], "{key}");
            let notes = &by_flags["assumptions"]["firmware_notes"];
            assert_eq!(notes.is_null(), flags.is_empty(), "{by_flags}");
            digests.push(by_flags["measurement"].as_str().unwrap().to_owned());
        }
        let explained = stdout(0, &["explain", &config]);
        assert_eq!(explained.contains("the one for development"), key.contains("log"));
    }
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 6, "{digests:?}");
    // An edition that is named has to be the one that the guest is said to have.
    let image = write(folder.path(), "own.fd", casemate_firmware_image::IMAGE);
    let named = format!("platform = \"snp\"\nkernel = \"{kernel}\"\nfirmware = \"{image}\"\n");
    let logs = format!("{named}firmware_log = true\n");
    let logs = write(folder.path(), "logs.toml", logs.as_bytes());
    assert!(stdout(2, &["measure", &logs]).contains("does not log"));
    let (firmware, signature) = (input("tiny-std.fd"), ["--vcpus", "1", "--vcpu-type", "EPYC"]);
    let ovmf = ["measure", "snp", "--firmware", &firmware, "--firmware-log"];
    refused(&[&ovmf[..], &signature].concat(), "for Casemate's own firmware");
}

#[test]
fn diff_describes_each_change() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = |name: &str, features: &str| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        let firmware = input("tiny-std.fd");
        let guest = ["measure", "snp", "--firmware", &firmware, "--vcpus", "2"];
        let more = ["--vcpu-type", "EPYC", "--guest-features", features, "--manifest", &path];
        stdout(0, &[&guest[..], &more[..]].concat());
        path
    };
    let (a, b) = (manifest("a.json", "0x1"), manifest("b.json", "0x21"));
    let words = stdout(1, &["measure", "--diff", &a, &b]);
    assert_eq!(
        words,
        "VMSA of every vCPU: SEV_FEATURES bit 5, debug swap, is set only in the second\n"
    );
    assert!(stdout(0, &["measure", "--diff", &a, &a]).starts_with("no difference"));
    let files = ["measure", "--diff", &input("tiny-std.fd"), &input("tiny-order.fd")];
    assert!(stdout(1, &files).contains("firmware: 0x2000 bytes in the first"));
    refused(&["measure", "--diff", &a, &input("kernel-tiny.bin")], "kernel-tiny.bin");
}

/// Our firmware's config page is part of its image: what differs there is named, not "other contents".
#[test]
fn diff_describes_changes_of_the_config_page() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = input("kernel-tiny.bin");
    let guest = |name: &str, more: &str| {
        let text = format!("platform = \"snp\"\nkernel = \"{kernel}\"\n{more}\n");
        write(folder.path(), name, text.as_bytes())
    };
    let base = guest("base.toml", "cmdline = \"quiet\"");
    let diff = |other: &str| stdout(1, &["measure", "--diff", &base, other]);
    let words = diff(&guest("cmdline.toml", "cmdline = \"verbose\""));
    assert_eq!(words.lines().count(), 1, "{words}");
    // SHA-256 of "quiet" and of "verbose", each with its NUL.
    for digest in [
        "c801d8e83dec6220b30fe179a8aabec923c8977255530ecc7dc23b95a6959bbc in the first",
        "614be95335ee857bcf69f306d3c10e444ec9f90b973c93771b9d54f52d65a750 in the second",
    ] {
        assert!(words.contains(digest), "{words}");
    }
    let what = "config page of the firmware: SHA-256 of the command line with its NUL is ";
    assert!(words.starts_with(what), "{words}");
    let words = diff(&guest("eager.toml", "cmdline = \"quiet\"\naccept_memory = \"eager\""));
    assert_eq!(
        words,
        "config page of the firmware: accept_memory is lazy in the first and eager in the second\n"
    );
    // Another image has another page, too.
    let words = diff(&guest("log.toml", "cmdline = \"quiet\"\nfirmware_log = true"));
    assert!(words.contains("firmware_log is false in the first and true in the second"), "{words}");
    assert!(words.contains("firmware at "), "{words}");
}

#[test]
fn search_explains_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let firmware = input("tiny-std.fd");
    let guest =
        ["measure", "snp", "--firmware", &firmware, "--vcpus", "9", "--vcpu-type", "EPYC-Turin"];
    let kernel = input("kernel-tiny.bin");
    let boot = ["--kernel", &kernel, "--append", "quiet\n", "--format", "hex"];
    let hex = stdout(0, &[&guest[..], &boot[..]].concat());
    let genuine = casemate_test_support::evidence::file("snp/dstack-milan/report.bin").unwrap();
    let mut report = genuine.clone();
    for (at, byte) in report[0x90..0xc0].iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    }
    let report = write(folder.path(), "report.bin", &report);
    let known = ["--firmware", &firmware, "--kernel", &kernel, "--append", "quiet"];
    let found = json(&[&["measure", "--search", &report], &known[..]].concat());
    let found = &found["explanation"];
    assert_eq!((&found["vcpus"], &found["vmm"]), (&Value::from(9), &Value::from("qemu")));
    assert_eq!(found["vcpu_signature"], "0x00b00f00");
    assert_eq!(found["kernel"], "with a newline behind the command line");

    let other = write(folder.path(), "other.bin", &genuine);
    let words = stdout(1, &[&["measure", "--search", &other], &known[..]].concat());
    assert!(words.contains("is not explained"), "{words}");
    refused(&["measure", "--search", &report], "pass --firmware");
    refused(
        &["measure", "--search", &firmware, "--firmware", &firmware],
        "neither an SEV-SNP report",
    );
}

#[test]
fn a_guest_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let disk = write(folder.path(), "disk.img", &[0; 4096]);
    let text = format!(
        "kernel = \"{}\"\nfirmware = \"{}\"\n[[disk]]\npath = \"{disk}\"\n[snp]\ndebug = true\n",
        input("kernel-tiny.bin"),
        input("tiny-std.fd")
    );
    let guest = write(folder.path(), "guest.toml", text.as_bytes());
    let facts = json(&["explain", &guest]);
    let debug = |platform: usize| facts[platform]["support"][0]["possible"].clone();
    assert_eq!((&facts[0]["platform"], debug(0)), (&Value::from("snp"), Value::from(true)));
    assert_eq!((&facts[1]["platform"], debug(1)), (&Value::from("tdx"), Value::from(false)));
    for part in ["see", "change", "delay", "withhold"] {
        assert!(!facts[0]["host_can"][part].as_array().unwrap().is_empty(), "{part}");
    }
    let words = stdout(0, &["explain", &guest, "--platform", "snp"]);
    assert!(words.contains("nobody should trust this guest") && words.contains("disk"), "{words}");
    refused(&["explain", &guest, "--platform", "plain"], "does not allow this platform");
    for platform in [0, 1] {
        for (action, instead) in [(1, "take a snapshot of its disks"), (2, "attests anew")] {
            let support = &facts[platform]["support"][action];
            assert_eq!(support["possible"], false, "{support}");
            assert!(support["instead"].as_str().unwrap().contains(instead), "{support}");
        }
    }
    assert!(words.contains("; instead, stop the guest"), "{words}");

    // Casemate's own firmware knows both.
    let text = format!("kernel = \"{}\"\n", input("kernel-tiny.bin"));
    let own = write(folder.path(), "own.toml", text.as_bytes());
    let facts = json(&["explain", &own]);
    assert_eq!((&facts[0]["platform"], &facts[1]["platform"]), (&"snp".into(), &"tdx".into()));
}

#[test]
fn id_block_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (block, auth) = (path("block"), path("auth"));
    for vector in all("snp-id-block").unwrap() {
        let (params, expected) = (&vector["params"], &vector["expected"]);
        let file = |name: &str| {
            casemate_test_support::vectors::folder()
                .join(params[name].as_str().unwrap())
                .to_str()
                .unwrap()
                .to_owned()
        };
        let (id_key, author_key) = (file("id_key"), file("author_key"));
        let measurement = params["launch_digest"].as_str().unwrap();
        let policy = params["policy"].as_str().unwrap();
        let list = ["id-block", "--measurement", measurement, "--policy", policy];
        let keys = ["--id-key", &id_key, "--author-key", &author_key];
        let outputs = ["--out-block", &block, "--out-auth", &auth];
        let digests = stdout(0, &[&list[..], &keys[..], &outputs[..]].concat());
        let digests: Value = serde_json::from_str(&digests).unwrap();
        for name in ["id_key_digest", "author_key_digest"] {
            assert_eq!(digests[name], expected[name]);
        }
        let bytes = std::fs::read(&block).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected["id_block"].as_str().unwrap());
        assert_eq!(std::fs::read(&auth).unwrap().len(), 4096);

        let bad =
            ["id-block", "--measurement", measurement, "--policy", policy, "--id-key", &block];
        refused(&[&bad[..], &outputs[..]].concat(), "cannot sign");
    }
}
