//! Commands whose output nobody reads to its end, and those that describe all others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::io::pipe;
use std::process::{Command, Stdio};

#[test]
fn a_command_ends_without_a_word_when_its_reader_has_gone() {
    for args in [&["completions", "bash"][..], &["host"], &["host", "--json"]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        let child = command.args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(141), "{args:?}");
    }
}

#[test]
fn completions_and_man_pages_know_the_commands() {
    let casemate = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_casemate")).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(casemate(&["completions", shell]).contains("id-block"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    casemate(&["man", folder.path().to_str().unwrap()]);
    let page = fs::read_to_string(folder.path().join("casemate-run.1")).unwrap();
    // A hyphen has a backslash there.
    assert!(page.replace('\\', "").contains("--kernel"), "{page}");
}
