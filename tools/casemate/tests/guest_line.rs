//! The command line of a confidential guest: the broker key that it pins, and the shells that it opens, as
//! `measure`, `explain` and `run` show them; and the nonce of the guest's agent, as `verify` takes it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;
use std::process::{Command, Output};

use casemate_protocol::{Challenger, challenge_data};
use casemate_test_support::chip::Report;
use casemate_test_support::{evidence, vectors};
use serde_json::{Value, json};

const KEY: &str = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const SAFE: &str = "console=ttyS0 panic=-1 rd.shell=0";

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap()
}

/// What a command prints that has to work, and what it warns of.
fn said(arguments: &[&str]) -> (String, String) {
    let output = casemate(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

fn kernel() -> String {
    vectors::folder().join("inputs/kernel-tiny.bin").to_str().unwrap().to_owned()
}

/// A guest with this command line, and keys beside it.
fn guest(folder: &Path, line: &str, more: &str) -> String {
    let path = folder.join("guest.toml");
    let text = format!("kernel = {:?}\ncmdline = {line:?}\n{more}", kernel());
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_pinned_broker_key_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("{SAFE} casemate.broker_key={KEY}");
    let kernel = kernel();
    for platform in [&["snp", "--vmm", "casemate", "--vcpus", "1"][..], &["tdx"]] {
        let measure = [&["measure"], platform, &["--kernel", &kernel, "--append", &line]].concat();
        let (table, warnings) = said(&measure);
        assert!(table.contains(&format!("broker key        {KEY}\n")), "{table}");
        assert_eq!(warnings, "");
        let (text, _) = said(&[&measure[..], &["--format", "json"]].concat());
        let measured: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(measured["broker_keys"], json!([KEY]));
    }
    let file = guest(folder.path(), &line, "[vsock]\nsocket = \"/tmp/sock\"\n");
    let (text, warnings) = said(&["measure", &file, "--format", "json"]);
    let measured: Value = serde_json::from_str(&text).unwrap();
    for platform in measured.as_array().unwrap() {
        assert_eq!(platform["broker_keys"], json!([KEY]));
    }
    assert_eq!(warnings, "");
    assert!(said(&["explain", &file]).0.contains(&format!("broker key: {KEY}: pinned")));
    let file = guest(folder.path(), SAFE, "");
    assert!(said(&["explain", &file]).0.contains("broker key: the command line pins none"));
}

#[test]
fn a_command_line_that_opens_a_shell_is_warned_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel();
    let measure = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--kernel", &kernel];
    let append = ["--format", "hex", "--append", "console=ttyS0 rd.break"];
    let (digest, warnings) = said(&[&measure[..], &append].concat());
    assert_eq!(digest.len(), 97);
    let lines: Vec<_> = warnings.lines().collect();
    assert_eq!(lines.len(), 2, "{warnings}");
    assert!(lines[0].starts_with("casemate: warning: \"rd.break\""), "{warnings}");
    assert!(lines[1].ends_with("append \"panic=-1 rd.shell=0\""), "{warnings}");
    // Two platforms, one command line; and a guest that can ask a broker.
    let file = guest(folder.path(), "console=hvc0", "[vsock]\nsocket = \"/tmp/sock\"\n");
    let (_, warnings) = said(&["measure", &file]);
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    assert!(warnings.contains("casemate.broker_key=KEY"), "{warnings}");
    // What a plain guest opens to its host is not news.
    let file = guest(folder.path(), "console=hvc0", "platform = \"plain\"\n");
    assert!(!said(&["explain", &file]).0.contains("broker key"));
}

/// `--attest` without a socket device ends the run after the warnings and before the launch, on any host.
#[test]
fn run_warns_before_the_launch_as_text_and_as_events() {
    let kernel = kernel();
    let run = |platform: &str, line: &str, more: &[&str]| {
        let run = ["run", "--platform", platform, "--attest", "--kernel", &kernel];
        let output = casemate(&[&run[..], &["--cmdline", line], more].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // What Debian's installer writes for a serial console: its initrd opens a shell without panic=.
    let debian = "console=ttyS0";
    for platform in ["snp", "tdx"] {
        let text = run(platform, debian, &[]);
        let warnings: Vec<_> = text.lines().filter(|line| line.contains(": warning: ")).collect();
        let [warning] = warnings.as_slice() else { panic!("{platform}: {text}") };
        assert!(warning.contains("may open a root shell on a console of the host"), "{warning}");
        assert!(warning.ends_with("; append \"panic=-1 rd.shell=0\""), "{warning}");
        let (before, _) = text.split_once("expected measurement").unwrap();
        assert!(before.contains(warning), "{text}");
        assert!(!run(platform, SAFE, &[]).contains("warning"), "{platform}");
    }
    let events = run("snp", &format!("{debian} rd.break"), &["--json"]);
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["warning", "warning", "measured", "failed"]);
    let shell = "\"rd.break\" on the command line starts a root shell on a console of the host";
    assert_eq!(events[0], json!({"event": "warning", "text": shell, "remedy": "remove it"}));
    assert_eq!(events[1]["remedy"], "append \"panic=-1 rd.shell=0\"");
}

#[test]
fn a_nonce_is_one_of_the_guest_s_agent() {
    let folder = tempfile::tempdir().unwrap();
    let judge = |report_data: [u8; 64], nonce: &str| {
        let report = Report { policy: Report::POLICY, report_data, measurement: [0x5a; 48] };
        let path = folder.path().join("report");
        std::fs::write(&path, report.sign().unwrap()).unwrap();
        let synthetic = |name: &str| {
            let path = evidence::folder().join("synthetic").join(name);
            path.to_str().unwrap().to_owned()
        };
        let output = casemate(&[
            "verify",
            "snp",
            "--report",
            path.to_str().unwrap(),
            "--vek",
            &synthetic("vcek.der"),
            "--ask",
            &synthetic("ask.der"),
            "--ark",
            &synthetic("ark.der"),
            "--test-root",
            &synthetic("ark.der"),
            "--at",
            "2026-11-22T00:00:00Z",
            "--format",
            "json",
            "--nonce",
            nonce,
        ]);
        let judgement: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let checks = judgement["checks"].as_array().cloned().unwrap_or_default();
        let check = checks.into_iter().find(|check| check["name"] == "report-data");
        (output.status.code(), check.map(|check| check["result"].clone()))
    };
    let answer = challenge_data(Challenger::Report, &[0, 0x11, 0x22, 0x33]);
    assert_eq!(judge(answer, "00112233"), (Some(0), Some(json!("passed"))));
    assert_eq!(judge(answer, "00112234"), (Some(1), Some(json!("failed"))));
    // Neither the nonce itself nor the answer to a VMM.
    let mut raw = [0; 64];
    raw[..4].copy_from_slice(&[0, 0x11, 0x22, 0x33]);
    let check = challenge_data(Challenger::Check, &[0, 0x11, 0x22, 0x33]);
    for data in [raw, check] {
        assert_eq!(judge(data, "00112233"), (Some(1), Some(json!("failed"))));
    }
    assert_eq!(judge(answer, "0").0, Some(2));
}
