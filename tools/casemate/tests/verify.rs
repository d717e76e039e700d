//! `casemate verify` on every case of the evidence folder, and on what is no evidence at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;
use std::process::{Command, Output};

use casemate_test_support::evidence::{Case, Inputs, case, cases, folder};
use casemate_verify::Timestamp;
use serde_json::Value;

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).arg("verify").args(arguments).output().unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The command line of a case, its files in `folder`.
fn arguments(case: &Case, folder: &Path) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| list.extend([format!("--{name}"), value]);
    let kind = match &case.inputs {
        Inputs::Snp(snp) => {
            option("report", write(folder, "report", &snp.report));
            option("vek", write(folder, "vek", &snp.vek));
            option("ask", write(folder, "ask", &snp.ask));
            option("ark", write(folder, "ark", &snp.ark));
            if let Some(crl) = &snp.crl {
                option("crl", write(folder, "crl", crl));
            }
            if snp.test_root {
                option("test-root", write(folder, "test-root", &snp.ark));
            }
            "snp"
        }
        Inputs::Tdx { quote, collateral } => {
            option("quote", write(folder, "quote", quote));
            if let Some(collateral) = collateral {
                let json = collateral.to_string();
                option("collateral", write(folder, "collateral", json.as_bytes()));
            }
            "tdx"
        }
    };
    if let Some(policy) = &case.policy {
        option("policy", write(folder, "policy", policy.to_string().as_bytes()));
    }
    option(
        "at",
        match &case.at {
            Some(Value::String(text)) => text.clone(),
            Some(seconds) => Timestamp(seconds.as_u64().unwrap()).to_string(),
            None => "2026-11-22T00:00:00Z".into(),
        },
    );
    option("format", "json".into());
    list.insert(0, kind.into());
    list
}

fn run(case: &Case) -> (Option<i32>, Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let arguments = arguments(case, folder.path());
    let output = casemate(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn every_case_gets_its_verdict_and_exit_status() {
    for case in cases().unwrap() {
        let (status, json, errors) = run(&case);
        let id = &case.id;
        assert_eq!(json["verdict"], case.verdict.as_str(), "{id}: {json:#}");
        let failed: Vec<&str> = json["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["result"] == "failed")
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        let named = case.failing.iter().any(|name| failed.contains(&name.as_str()));
        assert!(case.failing.is_empty() || named, "{id}: {failed:?}");
        let unreadable = ["length", "certificate-parse"].iter().any(|name| failed.contains(name));
        let expected = match case.verdict.as_str() {
            "accept" => 0,
            "no-collateral" => 3,
            _ if unreadable => 2,
            _ => 1,
        };
        assert_eq!(status, Some(expected), "{id}: {failed:?} {errors}");
        assert_eq!(unreadable, errors.contains("bad input"), "{id}: {errors}");
    }
}

#[test]
fn the_test_root_is_trusted_only_when_named_and_says_so() {
    let mut case = case("snp-synth-ok-v5").unwrap();
    let (status, json, errors) = run(&case);
    assert_eq!((status, &json["claims"]["trust"]), (Some(0), &Value::from("TEST")));
    assert!(errors.contains("TEST"), "{errors}");
    let Inputs::Snp(snp) = &mut case.inputs else { unreachable!() };
    snp.test_root = false;
    let (status, json, _) = run(&case);
    assert_eq!((status, &json["verdict"]), (Some(1), &Value::from("reject")));
}

#[test]
fn every_real_certificate_may_be_pem() {
    let case = case("snp-oak-milan_oc_release").unwrap();
    let Inputs::Snp(snp) = &case.inputs else { unreachable!() };
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = arguments(&case, folder.path());
    for (name, der) in [("vek", &snp.vek), ("ask", &snp.ask), ("ark", &snp.ark)] {
        let pem = pem("CERTIFICATE", der);
        let path = write(folder.path(), &format!("{name}.pem"), pem.as_bytes());
        let at = arguments.iter().position(|word| *word == format!("--{name}")).unwrap();
        arguments[at + 1] = path;
    }
    let output = casemate(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What `casemate certificates` puts together is whole, or is not there.
#[test]
fn certificates_are_put_together_if_they_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("table");
    let synthetic = casemate_test_support::evidence::folder().join("synthetic");
    let make = |names: [&str; 3]| {
        let [vek, ask, ark] = names.map(|name| synthetic.join(name));
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.arg("certificates").arg("--vek").arg(vek).arg("--ask").arg(ask);
        let output = command.arg("--ark").arg(ark).arg("--out").arg(&out).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, said) = make(["vcek.der", "ark.der", "ask.der"]);
    assert!(status == Some(2) && said.contains("is each file the one that"), "{said}");
    assert!(said.contains("the ARK certificate") && !out.exists(), "{said}");
    assert_eq!(make(["vcek.der", "ask.der", "ark.der"]), (Some(0), String::new()));
    let table = std::fs::read(&out).unwrap();
    let found = casemate_verify::snp::CertificateTable::parse(&table).unwrap();
    assert_eq!(found.vcek, Some(&*std::fs::read(synthetic.join("vcek.der")).unwrap()));
    assert_eq!(make(["vlek.der", "asvk.der", "ark.der"]), (Some(0), String::new()));
    assert_eq!(make(["vlek.der", "ask.der", "ark.der"]).0, Some(2));
    let table = std::fs::read(&out).unwrap();
    let found = casemate_verify::snp::CertificateTable::parse(&table).unwrap();
    assert!(found.vlek.is_some() && found.vcek.is_none(), "the last one that was good");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing beside it");
}

/// PEM, without a library: 48 bytes a line.
fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let mut bits = [0; 4];
            bits[1..=group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes(bits);
            for digit in 0..4 {
                let index = (bits >> (18 - 6 * digit) & 63) as usize;
                text.push(if digit > group.len() { '=' } else { char::from(DIGITS[index]) });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[test]
fn bad_input_is_an_error_with_status_2() {
    let folder_of_case = tempfile::tempdir().unwrap();
    let case = case("snp-oak-genoa_oc").unwrap();
    let good = arguments(&case, folder_of_case.path());
    let with = |option: &str, value: &str| {
        let mut list = good.clone();
        match list.iter().position(|word| word == option) {
            Some(at) => list[at + 1] = value.to_owned(),
            None => list.extend([option.to_owned(), value.to_owned()]),
        }
        let output = casemate(&list.iter().map(String::as_str).collect::<Vec<_>>());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{option} {value}: {errors}");
        assert!(!errors.is_empty() && !errors.contains("panicked"), "{option}: {errors}");
        errors
    };
    let manifest = folder().join("manifest.json");
    let (manifest, report) = (manifest.to_str().unwrap(), good[2].clone());
    for option in ["--report", "--vek", "--ask", "--ark", "--crl", "--test-root", "--policy"] {
        with(option, "/nowhere/at/all");
        with(option, "/dev/zero");
        with(option, "/");
        with(option, manifest);
    }
    with("--vek", &report);
    for at in ["", "yesterday", "2026-11-22", "1795305600", "2026-11-22T00:00:00"] {
        with("--at", at);
    }
    let file = |name: &str, text: &str| write(folder_of_case.path(), name, text.as_bytes());
    for text in [
        "",
        "[]",
        "null",
        "{\"debug\": false}",
        "{\"allow_debug\": \"no\"}",
        "{\"allow_debug\": true, \"allow_debug\": false}",
        "{\"measurements\": [\"00\"]}",
        "{\"report_data\": \"zz\"}",
        "{\"min_reported_tcb\": []}",
        "{\"min_reported_tcb\": {\"microcode\": 1}}",
        "{\"signing_keys\": [\"NONE\"]}",
        "{\"vmpl\": 0}",
        "{} {}",
        "{\"mrtd\": null}",
    ] {
        let errors = with("--policy", &file("policy.json", text));
        assert!(errors.contains("policy"), "{text}: {errors}");
    }
    assert_eq!(casemate(&[]).status.code(), Some(2));
    assert_eq!(casemate(&["snp"]).status.code(), Some(2));
}

#[test]
fn evidence_of_another_kind_is_bad_input() {
    let path = |name: &str| folder().join(name).to_str().unwrap().to_owned();
    let (quote, collateral) = (path("tdx/qvl-v4/quote.bin"), path("tdx/qvl-v4/collateral.json"));
    for (quote, collateral) in [
        (path("snp/oak-turin_oc/report.bin"), &collateral),
        (path("snp/oak-turin_oc/vek.der"), &collateral),
        (collateral.clone(), &quote),
        (quote.clone(), &quote),
        (path("tdx/gotdx-cos113/ccel_data.dat"), &collateral),
    ] {
        let output = casemate(&["tdx", "--quote", &quote, "--collateral", collateral]);
        assert_eq!(output.status.code(), Some(2), "{quote} {collateral}");
    }
}

#[test]
fn an_event_log_must_give_the_registers_of_the_quote() {
    let path = |name: &str| folder().join("tdx").join(name).to_str().unwrap().to_owned();
    let run = |log: &str| {
        let quote = path("gotdx-cos113/quote.bin");
        let at = "2026-11-22T00:00:00Z";
        let list = ["tdx", "--quote", &quote, "--event-log", log, "--at", at, "--format", "json"];
        let output = casemate(&list);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = json["checks"].as_array().unwrap();
        let rtmr = checks.iter().find(|check| check["name"] == "rtmr").unwrap();
        (output.status.code(), rtmr["result"].as_str().unwrap().to_owned())
    };
    assert_eq!(run(&path("gotdx-cos113/ccel_data.dat")), (Some(3), "passed".into()));
    assert_eq!(run(&path("dstack-2g/eventlog.json")), (Some(3), "failed".into()));
    assert_eq!(run(&path("gotdx-cos113/quote.bin")), (Some(2), "failed".into()));
}

/// The expected measurement comes from the guest's own configuration, and is a condition beside the
/// policy's.
#[test]
fn a_guest_file_says_what_to_expect() {
    let own = tempfile::tempdir().unwrap();
    let kernel = write(own.path(), "kernel", b"a kernel");
    let file = format!("kernel = \"{kernel}\"\nplatform = \"snp\"\n");
    let guest = write(own.path(), "guest.toml", file.as_bytes());
    let predicted = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["measure", &guest, "--format", "hex"])
        .output()
        .unwrap();
    assert!(predicted.status.success(), "{}", String::from_utf8_lossy(&predicted.stderr));
    let predicted = String::from_utf8(predicted.stdout).unwrap();

    let snp = folder().join("snp");
    let path = |name: &str| snp.join(name).display().to_string();
    let (report, vek) =
        (path("oak-milan_oc_release/report.bin"), path("oak-milan_oc_release/vek.der"));
    let (ask, ark) = (path("roots/milan-ask.der"), path("roots/milan-ark.der"));
    let chain = ["--vek", &vek, "--ask", &ask, "--ark", &ark, "--at", "2025-06-01T00:00:00Z"];
    let verify = |more: &[&str]| {
        casemate(&[&["snp", "--format", "json", "--report", &report][..], &chain, more].concat())
    };
    let output = verify(&["--expect", &guest]);
    assert_eq!(output.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = result["checks"].as_array().unwrap();
    let measurement = checks.iter().find(|check| check["name"] == "measurement").unwrap();
    assert_eq!(measurement["result"], "failed");
    assert!(measurement["detail"].as_str().unwrap().contains(predicted.trim()), "{measurement}");
    // HOST_DATA is that of the machine: this report has none.
    let measured = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["measure", &guest, "--format", "json"])
        .output()
        .unwrap();
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let host_data = checks.iter().find(|check| check["name"] == "host-data").unwrap();
    assert_eq!(host_data["result"], "failed");
    let expected = measured[0]["host_data"].as_str().unwrap();
    assert!(host_data["detail"].as_str().unwrap().contains(expected), "{host_data}");

    // A policy that allows the report's own measurement does not make up for another guest.
    let claimed = result["claims"]["measurement"].as_str().unwrap().to_owned();
    let policy = format!("{{\"measurements\": [\"{claimed}\"]}}");
    let policy = write(own.path(), "policy.json", policy.as_bytes());
    assert_eq!(verify(&["--policy", &policy, "--expect", &guest]).status.code(), Some(1));
    assert_eq!(verify(&["--policy", &policy]).status.code(), Some(0));

    let missing = verify(&["--expect", "no-such.toml"]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn a_name_in_a_certificate_does_not_act_on_the_terminal() {
    let file = |name: &str| folder().join("synthetic").join(name).display().to_string();
    let forged = file("forged-words.der");
    for explain in [&[][..], &["--explain"], &["--format", "json"]] {
        let output = casemate(
            &[
                &["snp", "--report", &file("reports/ok-v5.bin"), "--ask", &file("ask.der")][..],
                &["--vek", &forged, "--ark", &forged, "--at", "2026-11-22T00:00:00Z"],
                explain,
            ]
            .concat(),
        );
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8(text).unwrap();
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
            assert!(!text.lines().any(|line| line.starts_with("accept")), "{text}");
        }
    }
}

#[test]
fn a_migration_agent_is_refused_unless_a_policy_allows_it() {
    let mut case = case("snp-synth-migration-agent").unwrap();
    assert_eq!(run(&case).0, Some(1));
    case.policy = Some(serde_json::json!({"allow_debug": false}));
    assert_eq!(run(&case).0, Some(0));
}

/// An accepted guest is only as good as the conditions: both outputs list those that are missing, by the
/// keys of `casemate policy check`.
#[test]
fn weak_policies_are_listed_with_the_verdict() {
    let mut case = case("snp-synth-ok-v5").unwrap();
    let strict = serde_json::json!({
        "allow_debug": false, "allow_migration_agent": false, "vmpl": [0],
        "min_reported_tcb": {"bl": 0}, "id_key_digests": "00".repeat(48),
    });
    for (policy, open) in [
        (None, &["measurements", "min_reported_tcb"][..]),
        (Some(strict.clone()), &[]),
        (
            Some(serde_json::json!({"vmpl": [0, 3]})),
            &["measurements", "allow_debug", "allow_migration_agent", "min_reported_tcb"],
        ),
    ] {
        case.policy = policy;
        let (_, json, errors) = run(&case);
        let found: Vec<_> = json["open"].as_array().unwrap().iter().collect();
        let keys: Vec<_> = found.iter().map(|weakness| weakness["key"].as_str().unwrap()).collect();
        assert_eq!(keys, open);
        let warnings: Vec<_> = errors.lines().filter(|line| line.contains("is weak")).collect();
        assert_eq!(warnings.len(), open.len(), "{errors}");
        for (warning, key) in warnings.iter().zip(open) {
            let start = format!("casemate: warning: the policy is weak: {key}: ");
            assert!(warning.starts_with(&start), "{warning}");
        }
    }
}

#[test]
fn expected_guests_close_the_measurement() {
    let own = tempfile::tempdir().unwrap();
    let kernel = write(own.path(), "kernel", b"a kernel");
    let file = format!("kernel = \"{kernel}\"\nplatform = \"tdx\"\n");
    let guest = write(own.path(), "guest.toml", file.as_bytes());
    let quote = folder().join("tdx/qvl-v4/quote.bin").display().to_string();
    let open = |more: &[&str]| {
        let list = [&["tdx", "--quote", &quote, "--format", "json"][..], more].concat();
        let json: Value = serde_json::from_slice(&casemate(&list).stdout).unwrap();
        json["open"].as_array().unwrap().iter().any(|weakness| weakness["key"] == "mrtd")
    };
    assert!(open(&[]) && !open(&["--expect", &guest]));
}

#[test]
fn azure_guests_are_judged_from_files() {
    let cloud = |name: &str| folder().join("cloud/az-snp-genoa").join(name).display().to_string();
    let [hcl, message, signature, pcrs, vek] =
        ["hcl-report.bin", "quote.msg", "quote.sig", "pcrs.bin", "vek.der"].map(cloud);
    let nonce = "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f";
    let quote = ["--quote-message", &message, "--quote-signature", &signature, "--pcrs", &pcrs];
    let judge = |nonce: &str, quote: &[&str]| {
        let at = ["--at", "2026-11-22T00:00:00Z", "--nonce", nonce];
        let output = casemate(&[&["azure", "--hcl", &hcl, "--vek", &vek][..], &at, quote].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, text) = judge(nonce, &quote);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("\n  snp-report: accept\n    passed    length "), "{text}");
    assert!(text.ends_with("known system: not done\n  fresh: passed\n"), "{text}");
    let (status, text) = judge("00", &quote);
    assert_eq!((status, text.lines().next()), (Some(1), Some("reject: nonce")));
    let (status, text) = judge(nonce, &[]);
    assert_eq!((status, text.lines().next()), (Some(1), Some("reject: quote-missing")));
    assert_eq!(casemate(&["azure"]).status.code(), Some(2));
}

#[test]
fn attestations_of_google_and_nitro_are_judged_from_files() {
    let cloud = |name: &str| folder().join("cloud").join(name).display().to_string();
    let attestation = cloud("gcp-gce-cos-85-nonce9009/attestation.pb");
    let issuer = cloud("gcp-gce-cos-85-nonce9009/ak-intermediate.crt");
    let document = cloud("nitro-dstack/document.cbor");
    let judge = |list: &[&str]| {
        let output = casemate(list);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let google = ["google", "--attestation", &attestation, "--at", "2026-11-22T00:00:00Z"];
    let (status, text) =
        judge(&[&google[..], &["--nonce", "9009", "--intermediate", &issuer]].concat());
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("\n  genuine platform: not done\n"), "{text}");
    assert_eq!(judge(&google).0, Some(1), "without its issuer");
    let nitro = ["nitro", "--document", &document];
    let (status, text) = judge(&[&nitro[..], &["--at", "2025-12-25T16:05:00Z"]].concat());
    assert_eq!(status, Some(0), "{text}");
    let (status, text) = judge(&[&nitro[..], &["--at", "2025-12-26T16:05:00Z"]].concat());
    assert_eq!((status, text.lines().next()), (Some(1), Some("reject: cert-expired")));
    assert_eq!(judge(&["nitro", "--document", &attestation]).0, Some(2));
}

#[test]
fn issuers_are_built_in_and_tables_are_taken() {
    let own = tempfile::tempdir().unwrap();
    let path = |name: &str| folder().join("snp").join(name).display().to_string();
    let (report, vek) = (path("oak-turin_oc/report.bin"), path("oak-turin_oc/vek.der"));
    let table = own.path().join("table").display().to_string();
    let made = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["certificates", "--vek", &vek, "--ask", &path("roots/turin-ask.der")])
        .args(["--ark", &path("roots/turin-ark.der"), "--out", &table])
        .status();
    assert!(made.unwrap().success());
    let judge = |list: &[&str]| {
        let at = ["--at", "2026-11-22T00:00:00Z"];
        casemate(&[&["snp", "--report", &report][..], &at, list].concat()).status.code()
    };
    assert_eq!(judge(&["--vek", &vek]), Some(0));
    assert_eq!(judge(&["--vek", &table]), Some(0));
    // Issuers that are given count, even if they are wrong.
    let (ask, ark) = (path("roots/milan-ask.der"), path("roots/milan-ark.der"));
    assert_eq!(judge(&["--vek", &table, "--ask", &ask, "--ark", &ark]), Some(1));
    assert_eq!(judge(&["--vek", &vek, "--ask", &ask]), Some(2));
    // A root that only the host gives is not AMD's.
    let synthetic = |name: &str| folder().join("synthetic").join(name).display().to_string();
    let made = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["certificates", "--vek", &synthetic("vcek.der"), "--ask", &synthetic("ask.der")])
        .args(["--ark", &synthetic("ark.der"), "--out", &table])
        .status();
    assert!(made.unwrap().success());
    let report = synthetic("reports/ok-v5.bin");
    let output = casemate(&["snp", "--report", &report, "--vek", &table]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn tokens_of_arm_are_judged_by_the_named_key() {
    let cloud = |name: &str| folder().join("cloud/cca-tf-rmm").join(name).display().to_string();
    let (token, key) = (cloud("token.cbor"), cloud("platform-key.jwk"));
    let judge = |list: &[&str]| {
        let output = casemate(&[&["cca", "--token", &token][..], list].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(judge(&["--platform-key", &key]).0, Some(0));
    let (status, text) = judge(&[]);
    assert_eq!(status, Some(1));
    assert!(text.contains("not done  platform-signature"), "{text}");
    assert_eq!(judge(&["--platform-key", &token]).0, Some(2));
}
