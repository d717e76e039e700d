//! Commands whose output nobody reads to its end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

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
