//! TDX guests with Linux and Casemate's own firmware, in the emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use casemate_lab::{Host, require};
use casemate_test_support::quotes;
use confidential::{CMDLINE, Guest, casemate, predicted_mrtds, said};
use serde_json::Value;

/// Signs in the emulated host what stands in for Intel's service there.
#[test]
#[ignore = "another test runs it in the emulated host"]
fn quote_service() {
    quotes::serve(Path::new("/tmp/quotes")).unwrap();
}

/// The firmware, and with it the kernel, is measured; the kernel and a quote say the same.
#[test]
fn linux_is_started_by_our_firmware_and_has_the_predicted_registers() {
    if require(Host::Tdx).is_none() {
        return;
    }
    let guests = [
        ("7.2", 2, "[\"AVX\", \"PK\"]", 0x207_u64, "lazy"),
        ("6.12", 1, "[]", 3, "eager"),
        ("6.12", 2, "[]", 3, "lazy"),
    ];
    for (series, vcpus, xfam, bits, accept_memory) in guests {
        let guest = Guest::new(Host::Tdx, series);
        let config = guest.write(
            "guest.toml",
            format!(
                "platform = \"tdx\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\nmemory = \"192M\"\n\
                 cmdline = \"{CMDLINE} quote\"\nvcpus = {vcpus}\n\
                 accept_memory = \"{accept_memory}\"\nfirmware_log = {}\n[tdx]\nxfam = {xfam}\n\
                 mrowner = \"{}\"\nquote_service = \"unix:/tmp/quotes\"\n",
                accept_memory == "eager",
                "5a".repeat(48)
            ),
        );
        let service = std::env::current_exe().unwrap().display().to_string();
        let script = format!("{service} --ignored quote_service >/tmp/service 2>&1 &\n")
            + "until [ -S /tmp/quotes ]; do sleep 0.1; done\n"
            + &guest.other_line(&config);
        let Some(output) = guest.in_lab(&script) else { return };
        let console = &output.console;
        assert!(console.contains("ENDED 0"), "{console}");
        assert!(console.contains(&format!("UP vcpus={vcpus} kernel={series}")), "{console}");
        assert!(console.contains("active: Intel TDX"), "{console}");
        let time = Duration::from_secs(said(console, "TIME ", 0).parse().unwrap());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(time.abs_diff(now) < Duration::from_hours(1), "{time:?}: {console}");
        let lazy = accept_memory == "lazy";
        assert_eq!(said(console, "PACKAGES ", 0), "1", "{console}");
        assert_eq!(said(console, "LEFT ", 0), if lazy { "1" } else { "0" }, "{console}");
        assert_eq!(console.contains("firmware: starting the kernel"), !lazy, "{console}");
        if vcpus > 1 {
            assert!(console.contains(&format!("AGAIN vcpus={vcpus}")), "{console}");
        }
        let [mrtd] = &predicted_mrtds(&output)[..] else { panic!("{console}") };

        let measured = casemate(&["measure", &config, "--platform", "tdx", "--format", "json"]);
        let measured: Value = serde_json::from_str(&measured).unwrap();
        let measured = measured.get(0).unwrap_or(&measured);
        let registers = [0, 1, 2].map(|at| measured["rtmr"][at].as_str().unwrap().to_owned());
        assert_eq!(measured["mrtd"], mrtd.as_str());
        if series == "7.2" {
            for (at, value) in registers.iter().enumerate() {
                assert_eq!(said(console, &format!("REGISTER rtmr{at}:sha384 "), 0), value);
            }
        }
        let quote = BASE64_STANDARD.decode(said(console, "QUOTE ", 0)).unwrap();
        let claims = claims(&guest.write("quote", quote), &config);
        assert_eq!(claims["mrtd"], mrtd.as_str());
        assert_eq!(claims["mrowner"], "5a".repeat(48));
        let xfam: String = bits.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(claims["xfam"], xfam, "{console}");
        for (at, value) in registers.iter().enumerate() {
            assert_eq!(claims["rtmr"][at], value.as_str(), "RTMR{at}: {console}");
        }
    }
}

/// The trust domain that comes after is another one, of the same plan and with the same measurement.
#[test]
fn a_guest_of_two_processors_resets() {
    if require(Host::Tdx).is_none() {
        return;
    }
    let guest = Guest::new(Host::Tdx, "7.2");
    let disk = guest.write("disk", [0; 4096]);
    let again = guest.kernel(&format!("{CMDLINE} again"));
    let script = format!("{again} --vcpus 2 --on-reset restart --disk {disk}");
    let Some(output) = guest.in_lab(&guest.other_line(&script)) else { return };
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    assert_eq!(console.matches("UP vcpus=2 kernel=7.2").count(), 2, "{console}");
    assert_eq!(output.platform_log.matches(" mrtd ").count(), 2, "{}", output.platform_log);
    let mrtd = said(console, "REGISTER mrtd:sha384 ", 0);
    assert_eq!(said(console, "REGISTER mrtd:sha384 ", 1), mrtd, "{console}");
    assert_eq!(predicted_mrtds(&output), [mrtd]);
}

/// A trust domain has no more vCPUs than its host has processors.
#[test]
fn sixteen_processors_start() {
    if require(Host::Tdx).is_none() {
        return;
    }
    let guest = Guest::new(Host::Tdx, "7.2");
    let Some(output) = guest.in_lab_of(16, &guest.line("--vcpus 16")) else { return };
    let console = &output.console;
    assert!(console.contains("UP vcpus=16 kernel=7.2"), "{console}");
    assert_eq!(said(console, "PACKAGES ", 0), "1", "{console}");
    assert!(console.contains("ENDED 0"), "{console}");
    assert_eq!(predicted_mrtds(&output).len(), 1);
}

/// What a quote claims that `casemate verify` finds genuine under the TEST root, and of this guest.
fn claims(quote: &str, expect: &str) -> Value {
    let verify = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .args(["verify", "tdx", "--quote", quote, "--expect", expect, "--format", "json"])
            .args(more)
            .output()
            .unwrap();
        let judgement: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), judgement)
    };
    // Without its name the root is nobody's.
    assert_eq!(verify(&[]).0, 1);
    let (status, judgement) = verify(&["--test-root", quotes::root().to_str().unwrap()]);
    assert_eq!((status, &judgement["verdict"]), (3, &"no-collateral".into()), "{judgement:#}");
    let checks = judgement["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["result"] == "failed").collect();
    assert!(failed.iter().all(|check| check["name"] == "collateral-missing"), "{judgement:#}");
    assert_eq!(judgement["claims"]["trust"], "TEST");
    judgement["claims"].clone()
}
