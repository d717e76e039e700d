//! `casemate policy check`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::process::Command;

use serde_json::{Value, json};

fn check(policy: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy"), policy).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["policy", "check", "policy"])
        .args(more)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn strict() -> Value {
    json!({
        "allow_debug": false, "allow_migration_agent": false, "vmpl": [0],
        "min_reported_tcb": {"bl": 4, "snp": 22, "ucode": 213}, "measurements": "00".repeat(48),
    })
}

#[test]
fn strict_policies_have_nothing_open() {
    let (status, out, _) = check(&strict().to_string(), &[]);
    assert_eq!((status, out.as_str()), (Some(0), "policy: nothing is open\n"));
    let tdx = json!({"allow_debug": false, "mrtd": "00".repeat(48), "tcb_statuses": ["UpToDate"]});
    let (status, out, _) = check(&tdx.to_string(), &["--json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, found), (Some(0), json!({"platform": "tdx", "open": []})));
}

#[test]
fn open_conditions_are_listed() {
    let mut weak = strict();
    weak["allow_migration_agent"] = true.into();
    let (status, out, _) = check(&weak.to_string(), &[]);
    assert_eq!(status, Some(1));
    assert!(out.starts_with("policy: allow_migration_agent: "), "{out}");
    let (status, out, _) = check("{}", &["--platform", "tdx", "--json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    let open = found["open"].as_array().unwrap();
    let keys: Vec<_> = open.iter().filter_map(|weakness| weakness["key"].as_str()).collect();
    assert_eq!((status, keys), (Some(1), vec!["mrtd", "allow_debug", "tcb_statuses"]));
}

#[test]
fn policies_of_clouds_are_checked() {
    let keys = |policy: &str, platform: &str| {
        let (status, out, errors) = check(policy, &["--platform", platform, "--json"]);
        assert_eq!(status, Some(1), "{errors}");
        let found: Value = serde_json::from_str(&out).unwrap();
        let open = found["open"].as_array().unwrap();
        open.iter().map(|weakness| weakness["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys("{}", "azure"), ["nonce", "pcrs", "min_reported_tcb"]);
    assert_eq!(keys("{}", "google"), ["nonce", "pcrs"]);
    assert_eq!(keys("{}", "nitro"), ["pcrs", "nonce"]);
    assert_eq!(keys("{}", "cca"), ["rim", "nonce"]);
    let azure = json!({"tpm": {"nonce": "00"}, "require_secure_boot": true}).to_string();
    let (status, out, _) = check(&azure, &["--json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &found["platform"]), (Some(1), &json!("azure")));
}

#[test]
fn ready_policies_are_listed_printed_and_taken() {
    let run = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_casemate")).args(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, list, _) = run(&["policy", "list"]);
    assert_eq!(status, Some(0));
    assert!(list.contains("entrysign-genoa     CVE-2024-56161"), "{list}");
    for line in list.lines() {
        let name = line.split(' ').next().unwrap();
        let (status, policy, sources) = run(&["policy", "show", name]);
        assert_eq!(status, Some(0), "{name}");
        assert!(sources.contains("sources: "), "{sources}");
        let (_, open, _) = check(&policy, &["--platform", "snp", "--json"]);
        let open: Value = serde_json::from_str(&open).unwrap();
        assert_eq!(open["open"][0]["key"], "measurements", "{name}: {open}");
    }
    let (status, out, errors) = run(&["policy", "show", "none\u{1b}[2J"]);
    assert_eq!((status, out.as_str()), (Some(2), ""));
    assert!(errors.contains("casemate policy list") && !errors.contains('\u{1b}'), "{errors}");
}

#[test]
fn what_is_no_policy_is_bad_input() {
    for (policy, words) in [
        ("{}", "pass --platform"),
        ("[]", "could not check the policy"),
        ("{\"vmpl\": [0], \"mrtd\": []}", "fit no platform"),
        ("{\"a\\u001b[2J\": 1}", "fit no platform"),
    ] {
        let (status, out, errors) = check(policy, &[]);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{policy}");
        assert!(errors.contains(words), "{policy}: {errors}");
        assert!(!errors.contains('\u{1b}'), "{errors:?}");
    }
}
