//! SEV-SNP guests of `casemate run`, in the emulated host: an unmodified kernel with its kvm_amd and
//! its driver of the secure processor, which measures and signs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;

use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use casemate_lab::{Host, require};
use confidential::{CMDLINE, Guest, casemate, predicted, said, sha256, written};

const HOST_DATA: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

#[test]
fn a_guest_is_encrypted_and_measures_to_what_was_predicted() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let (disk, contents) = guest.disk();
    let config = |name: &str, cmdline: &str| {
        let text = format!(
            "platform = \"snp\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"{cmdline}\"\n\
             memory = \"192M\"\n[[disk]]\npath = \"disk\"\n[snp]\nhost_data = \"{HOST_DATA}\"\n"
        );
        guest.write(name, text)
    };
    let (config, other) = (config("guest.toml", CMDLINE), config("other.toml", "quiet"));
    let trace = guest.path("trace");
    let script = guest.other_line(&config)
        + &guest.line(&format!("--vcpus 4 --record {trace} --log casemate=info"))
        + &guest.line("--accept-memory eager")
        + &guest.other_line(&guest.kernel(&format!("{CMDLINE} panics")));
    // Of two processors, so that the guest's four have to get along.
    let Some(output) = guest.in_lab_of(2, &script) else { return };
    let console = &output.console;
    assert_eq!(console.matches("ENDED 0").count(), 3, "{console}");
    assert!(console.contains("ENDED 121"), "{console}");
    for (place, (vcpus, left)) in [(1, 1), (4, 1), (1, 0)].into_iter().enumerate() {
        assert_eq!(said(console, "LEFT ", place), left.to_string(), "{console}");
        assert_eq!(said(console, "PACKAGES ", place), "1", "{console}");
        assert!(console.contains(&format!("UP vcpus={vcpus} kernel=6.12")), "{console}");
        predicted(console, place);
    }
    assert!(console.contains("bytes, at most"), "{console}");
    let trace = fs::read_to_string(trace).unwrap();
    let last = trace.lines().last().unwrap();
    assert!(last.contains("KVM_SEV_SNP_LAUNCH_FINISH"), "{trace}");
    assert!(console.contains("active: AMD SEV SEV-ES SEV-SNP"), "{console}");
    assert_eq!(said(console, "HOST_DATA ", 0), HOST_DATA);
    let report = BASE64_STANDARD.decode(said(console, "REPORT ", 0)).unwrap();
    let report = guest.write("report", report);
    assert_eq!(verified(&report, &config), (0, vec![]));
    assert_eq!(verified(&report, &other), (1, vec!["measurement".to_owned()]));
    // Through shared bounce buffers, both ways.
    assert_eq!(said(console, "DISK ", 0), sha256(&contents));
    assert_eq!(fs::read(&disk).unwrap(), written(&contents));
}

#[test]
fn sixteen_processors_start() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "7.2");
    let Some(output) = guest.in_lab(&guest.line("--vcpus 16")) else { return };
    let console = &output.console;
    assert!(console.contains("UP vcpus=16 kernel=7.2") && console.contains("ENDED 0"), "{console}");
    assert_eq!(said(console, "PACKAGES ", 0), "1", "{console}");
    predicted(console, 0);
}

/// What `casemate verify` makes of a report of the emulated chip: its exit status, and the checks that
/// failed.
fn verified(report: &str, expect: &str) -> (i32, Vec<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["verify", "snp", "--report", report, "--vek", &synthetic("vcek_lab.der")])
        .args(["--ask", &synthetic("ask.der"), "--ark", &synthetic("ark.der")])
        .args(["--test-root", &synthetic("ark.der"), "--expect", expect, "--format", "json"])
        .output()
        .unwrap();
    let judgement: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = judgement["checks"].as_array().unwrap().iter();
    let failed = checks.filter(|check| check["result"] == "failed");
    let names = failed.map(|check| check["name"].as_str().unwrap().to_owned()).collect();
    (output.status.code().unwrap(), names)
}

/// The table with the certificates of the emulated chip's key, as a file of a guest's, and its bytes.
fn certificates(guest: &Guest) -> (String, Vec<u8>) {
    let table = guest.path("certificates");
    let names = ["vcek_lab.der", "ask.der", "ark.der", "crl-empty.der"];
    let [vcek, ask, ark, crl] = names.map(synthetic);
    // In PEM, as AMD gives out ASK and ARK.
    let pem = pem(&fs::read(&ask).unwrap());
    let ask = guest.write("ask.pem", pem);
    let chain = ["--vek", &vcek, "--ask", &ask, "--ark", &ark, "--crl", &crl];
    casemate(&[&["certificates", "--out", &table], &chain[..]].concat());
    let bytes = fs::read(&table).unwrap();
    assert!(bytes.len() > 4096, "more than a page: {} bytes", bytes.len());
    (table, bytes)
}

fn pem(der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let lines = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap());
    let lines: Vec<_> = lines.collect();
    let lines = lines.join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
}

/// A file of the emulated chip's.
fn synthetic(name: &str) -> String {
    let folder = casemate_test_support::evidence::folder().join("synthetic");
    folder.join(name).to_str().unwrap().to_owned()
}

/// With its processors, after a reset as before it: the same plan is launched again. The host's kernel
/// is one that asks for certificates, and gets them.
#[test]
fn a_guest_of_four_processors_resets() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "7.2");
    let disk = guest.write("disk", [0; 4096]);
    let (certificates, table) = certificates(&guest);
    let certificates = format!("[snp]\ncertificates = \"{certificates}\"\n");
    let config = guest.write("guest.toml", certificates);
    let flags = format!("{config} --vcpus 4 --on-reset restart --disk {disk}");
    let again = guest.kernel(&format!("{CMDLINE} again"));
    let script = guest.other_line(&format!("{again} {flags}")) + &guest.line("");
    let Some(output) = guest.in_lab_with("7.2", &script) else { return };
    let (console, single) = output.console.split_once("ENDED 0").unwrap_or_else(|| {
        panic!("{}", output.console);
    });
    assert!(single.contains("UP vcpus=1 kernel=7.2"), "{single}");
    predicted(single, 0);
    assert_eq!(console.matches("UP vcpus=4 kernel=7.2").count(), 2, "{console}");
    let measured = said(console, "MEASUREMENT ", 0);
    assert_eq!(said(console, "MEASUREMENT ", 1), measured, "{console}");
    predicted(console, 0);
    assert_eq!(said(console, "CERTIFICATES ", 0), sha256(&table), "{console}");
    assert_eq!(said(single, "CERTIFICATES ", 0), sha256(&[]), "{single}");
    // The machine, in the form that the book documents.
    let machine = "casemate machine 1\nmemory 201326592\nvcpus 4\nrng true\nconsole false\n\
                   disk read_only=false queues=1 serial=-\n";
    assert_eq!(said(console, "HOST_DATA ", 0), sha256(machine.as_bytes()), "{console}");
}

/// The secure processor launches what an ID block was signed for, and nothing else.
#[test]
fn an_id_block_is_for_one_measurement() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let path = |name: &str| guest.path(name);
    let (kernel, initrd) = (path("vmlinuz"), path("initrd"));
    let (id, author) = (key("id-0"), key("author-0"));
    let measure = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--memory", "192M"];
    let more = ["--kernel", &kernel, "--initrd", &initrd, "--append", CMDLINE, "--format", "hex"];
    let good = casemate(&[&measure[..], &more[..]].concat());
    let other = good.replace(&good[..8], "00000000");
    let mut script = String::new();
    let mut digests = [String::new(), String::new()];
    for (name, measurement) in [("good", &good), ("other", &other)] {
        let (block, page) = (path(&format!("{name}.block")), path(&format!("{name}.auth")));
        let said = casemate(&[
            "id-block",
            "--measurement",
            measurement,
            "--id-key",
            &id,
            "--author-key",
            &author,
            "--policy",
            "0x30000",
            "--out-block",
            &block,
            "--out-auth",
            &page,
        ]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        digests = ["id_key_digest", "author_key_digest"]
            .map(|name| said[name].as_str().unwrap().to_owned());
        let table = format!("[snp]\nid_block = \"{block}\"\nid_authentication = \"{page}\"\n");
        script += &guest.line(&guest.write(&format!("{name}.toml"), table));
    }
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let (good, other) = console.split_once("ENDED 0").unwrap_or_else(|| panic!("{console}"));
    predicted(good, 0);
    assert_eq!(["ID_KEY ", "AUTHOR_KEY "].map(|name| said(good, name, 0)), digests);
    assert!(!other.contains("UP vcpus"), "{other}");
    assert!(other.contains("ENDED 2") && other.contains("BAD_MEASUREMENT"), "{other}");
}

fn key(name: &str) -> String {
    let inputs = casemate_test_support::vectors::folder().join("inputs");
    inputs.join(format!("TEST-ONLY-{name}.key.pem")).to_str().unwrap().to_owned()
}
