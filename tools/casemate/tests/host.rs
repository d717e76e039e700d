//! `casemate host`, as whoever runs it sees it: on this machine, and in the emulated hosts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::process::Command;
use std::time::Duration;

use casemate_lab::{Host, require};
use serde_json::Value;

/// Runs the command in each of its ways; a line of a word before each part.
fn script() -> String {
    let casemate = env!("CARGO_BIN_EXE_casemate");
    format!(
        "part() {{ echo; echo \"PART $*\"; {casemate} host \"$@\" 2>&1; echo \"STATUS $?\"; }}
         part; part --json
         for platform in plain snp tdx; do part --platform $platform --json; done
         part --quote-selftest unix:/none; part --quote-selftest unix:/none --json"
    )
}

/// What the command wrote with these options, and its exit status.
fn part<'a>(output: &'a str, options: &str) -> (&'a str, i32) {
    let (_, rest) = output.split_once(&format!("PART {options}\n")).unwrap();
    let (text, rest) = rest.split_once("STATUS ").unwrap();
    (text, rest.lines().next().unwrap().trim().parse().unwrap())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Checks that all ways of asking agree, and returns what can be launched.
fn agreed(output: &str) -> Vec<String> {
    let (text, status) = part(output, "--json");
    let report = json(text);
    let findings = report["findings"].as_array().unwrap();
    let launchable = words(&report["launchable"]);
    assert_eq!(status, i32::from(launchable.is_empty()), "{output}");
    assert!(report["facts"]["kernel"]["release"].as_str().is_some_and(|text| !text.is_empty()));
    for finding in findings {
        is_whole(finding);
    }
    let (table, table_status) = part(output, "");
    assert_eq!(table_status, status, "{output}");
    is_table(table, findings, &launchable);
    for platform in ["plain", "snp", "tdx"] {
        let concerns = |finding: &Value| words(&finding["platforms"]).contains(&platform);
        let missing = |finding: &Value| concerns(finding) && finding["state"] == "missing";
        let can = !findings.iter().any(missing);
        assert_eq!(launchable.contains(&platform), can, "{platform}: {output}");
        // Asked for one platform it says what concerns that, and its status is about that.
        let (text, status) = part(output, &format!("--platform {platform} --json"));
        let report = json(text);
        assert_eq!(status, i32::from(!can), "{platform}: {output}");
        assert_eq!(words(&report["launchable"]), Vec::from_iter(can.then_some(platform)));
        let findings: Vec<_> =
            findings.iter().filter(|finding| concerns(finding)).cloned().collect();
        assert_eq!(report["findings"], Value::Array(findings));
    }
    // Whatever else it can, no quote service is there.
    let (text, status) = part(output, "--quote-selftest unix:/none");
    assert!(status == 1 && text.starts_with("MISSING") && text.contains("unix:/none"), "{text}");
    let (text, status) = part(output, "--quote-selftest unix:/none --json");
    assert_eq!((status, &json(text)["works"]), (1, &Value::Bool(false)));
    launchable.into_iter().map(str::to_owned).collect()
}

/// A finding has a name, an outcome in words, and what to do about it unless all is well.
fn is_whole(finding: &Value) {
    let has = |key: &str| finding[key].as_str().is_some_and(|text| !text.trim().is_empty());
    assert!(has("check") && has("says") && !words(&finding["platforms"]).is_empty(), "{finding}");
    match finding["state"].as_str().unwrap() {
        "ok" => assert!(finding.get("fix").is_none(), "{finding}"),
        "note" | "missing" => assert!(has("fix"), "{finding}"),
        state => panic!("an unknown state {state}: {finding}"),
    }
}

/// The table has the same findings, a line each, and says in the end what can be launched.
fn is_table(table: &str, findings: &[Value], launchable: &[&str]) {
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    assert_eq!(lines.len(), findings.len() + 1, "{table}");
    for (line, finding) in lines.iter().zip(findings) {
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        let state = if text("state") == "missing" { "MISSING" } else { text("state") };
        let fix = text("fix");
        let end =
            if fix.is_empty() { text("says").into() } else { format!("{} -> {fix}", text("says")) };
        let (first, rest) = line.split_at(9);
        assert_eq!(first.trim(), state, "{line}");
        assert!(rest.starts_with(text("check")) && rest.ends_with(&format!("  {end}")), "{line}");
    }
    let verdict = lines.last().unwrap();
    let (can, cannot) = verdict.split_once(" Not: ").unwrap_or((verdict, ""));
    for (platform, name) in [("plain", "plain KVM"), ("snp", "SEV-SNP"), ("tdx", "TDX")] {
        let can_launch = can.starts_with("This machine can launch: ") && can.contains(name);
        assert_eq!(can_launch, launchable.contains(&platform), "{verdict}");
        assert!(can_launch || cannot.contains(name) || can.contains("cannot"), "{verdict}");
    }
}

/// In an emulated host; then with `more` done to it, by the same words.
fn in_host(host: Host, more: &str) -> Option<String> {
    let lab = require(host)?.timeout(Duration::from_secs(120));
    let output = lab.run(&["sh", "-c", &format!("{}\n{more}", script())]).unwrap();
    Some(output.console)
}

#[test]
fn this_machine_is_described() {
    let output = Command::new("sh").args(["-c", &script()]).output().unwrap();
    agreed(&String::from_utf8(output.stdout).unwrap());
}

#[test]
fn a_plain_host_is_described_also_without_its_kvm() {
    let more = "rm /dev/kvm; echo; echo AGAIN; part; part --json; part --platform plain";
    let Some(output) = in_host(Host::Kvm, more) else { return };
    let (output, again) = output.split_once("AGAIN").unwrap();
    assert_eq!(agreed(output), ["plain"]);
    let (table, status) = part(again, "");
    assert_eq!(status, 1, "{again}");
    assert!(table.contains("MISSING  kvm"), "{table}");
    assert!(table.contains("there is no /dev/kvm -> sudo modprobe kvm_amd\n"), "{table}");
    assert!(table.contains("This machine cannot launch: SEV-SNP, TDX, plain KVM."), "{table}");
    let (report, status) = part(again, "--json");
    assert_eq!((status, words(&json(report)["launchable"])), (1, vec![]));
    assert_eq!(part(again, "--platform plain").1, 1);
}

#[test]
fn an_snp_host_is_described() {
    let Some(output) = in_host(Host::Snp, "") else { return };
    assert_eq!(agreed(&output), ["snp", "plain"]);
    let (table, _) = part(&output, "");
    assert!(table.contains("ABI 1.55 build 21") && table.contains("snp asids"), "{table}");
}

#[test]
fn a_tdx_host_is_described() {
    let Some(output) = in_host(Host::Tdx, "") else { return };
    assert_eq!(agreed(&output), ["tdx", "plain"]);
    let (table, _) = part(&output, "");
    assert!(table.contains("KVM launches TDs, up to 2 vCPUs, TDX module"), "{table}");
    assert!(table.contains("note     tdx quotes"), "{table}");
}
