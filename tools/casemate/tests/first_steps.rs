//! What the README tells a newcomer to type.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use casemate_lab::{Host, require};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap()
}

/// The indented lines of the section, as they stand there.
fn first_steps() -> Vec<String> {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let section = readme.split_once("## First steps\n").unwrap().1.split_once("\n## ").unwrap().0;
    section.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

fn run(command: &mut Command) -> (Output, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_casemate")).parent().unwrap();
    let path = format!("{}:{}", program.display(), env::var("PATH").unwrap());
    let output = command.env("PATH", path).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output, text)
}

/// Below /tmp, of which the emulated host has its own.
#[test]
fn first_steps_can_be_pasted() {
    if require(Host::Snp).is_none() {
        return;
    }
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let lines = first_steps();
    // The program under test stands for the one that these make.
    let [make, path, lines @ ..] = &lines[..] else { panic!("{lines:?}") };
    assert!(make == "make release" && path.starts_with("export PATH=\"$PWD/target/release:"));
    assert!(lines.len() > 4, "{lines:?}");
    let script = lines.join("\n");
    let (output, text) = run(Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(directory.path()));
    assert!(output.status.success(), "{text}");
    let places = [
        "MISSING",
        "guest/guest.toml",
        "A guest: Linux",
        "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP",
    ];
    for place in places {
        assert!(text.contains(place), "{place}: {text}");
    }
}

/// `make demo`, with a program that is built already.
#[test]
fn the_demo_judges_the_report_that_its_guest_asked_for() {
    if require(Host::Snp).is_none() {
        return;
    }
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let guest = directory.path().join("guest");
    let (output, text) = run(Command::new(repository().join("tests/scripts/demo"))
        .env("CASEMATE_DEMO_PROGRAM", env!("CARGO_BIN_EXE_casemate"))
        .env("CASEMATE_DEMO_DIRECTORY", &guest));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("its report has the predicted measurement"), "{text}");
    // The command that it shows, once more: what it judged, and then other challenges and guests.
    let (_, command) = text.split_once("judging its report: casemate ").unwrap();
    let judge = || {
        let words = command.lines().next().unwrap().split(' ');
        run(Command::new(env!("CARGO_BIN_EXE_casemate")).args(words))
    };
    assert_eq!(judge().0.status.code(), Some(0));
    let reject = |file: &str, change: &dyn Fn(&str) -> String| {
        let path = guest.join(file);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(&good)).unwrap();
        assert_eq!(judge().0.status.code(), Some(1), "{file}: {}", change(&good));
        fs::write(&path, good).unwrap();
    };
    reject("demo.toml", &|text| text.replace("\"256M\"", "\"257M\""));
    reject("demo.toml", &|text| text.replace("quiet", "loud"));
    reject("policy.json", &|text| {
        let (start, challenge) = text.split_once("report_data\": \"").unwrap();
        let digit = if challenge.starts_with('0') { '1' } else { '0' };
        format!("{start}report_data\": \"{digit}{}", &challenge[1..])
    });
    assert_eq!(judge().0.status.code(), Some(0));
}
