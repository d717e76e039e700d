//! Scripts that people and the gate run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// What `tests/scripts/failed` makes of what cargo wrote.
fn failed(log: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/failed");
    let mut child =
        Command::new(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn failed_tests_are_named_with_the_command_that_runs_them_again() {
    let log = "\
     Running unittests src/lib.rs (target/debug/deps/a-1)
test one ... ok
test bad::two ... FAILED
test three ... FAILED
test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: test failed, to rerun pass `-p a --lib`
     Running tests/ends.rs (target/debug/deps/ends-1)
within: target/debug/deps/ends-1 used its limit of 3000 seconds and is ended
error: test failed, to rerun pass `-p a --test ends`

Caused by:
  process didn't exit successfully: `target/debug/within 3000 target/debug/deps/ends-1` (exit status: 124)
     Running tests/good.rs (target/debug/deps/good-1)
test four ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: 2 targets failed:
    `-p a --lib`
    `-p a --test ends`
";
    assert_eq!(
        failed(log),
        "test: FAILED; again: CASEMATE_REQUIRE_LAB=1 cargo test -p a --lib -- --exact bad::two
test: FAILED; again: CASEMATE_REQUIRE_LAB=1 cargo test -p a --lib -- --exact three
test: FAILED; again: CASEMATE_REQUIRE_LAB=1 cargo test -p a --test ends
test: 2 passed, 2 failed
"
    );
}

#[test]
fn what_does_not_compile_is_told_from_what_fails() {
    let log = "error[E0425]: cannot find value `x` in this scope\nerror: could not compile `a`\n";
    assert!(failed(log).starts_with("test: FAILED before the tests"));
    assert_eq!(
        failed("test a ... ok\ntest result: ok. 1 passed; 0 failed;\n"),
        "test: 1 passed, 0 failed\n"
    );
}

#[test]
fn within_passes_the_status_on_and_ends_what_does_not_end() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_within")).args(arguments).output().unwrap()
    };
    assert_eq!(run(&["600", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["600", "sh", "-c", "kill -9 $$"]).status.code(), Some(128 + 9));
    let output = run(&["1", "sleep", "600"]);
    assert_eq!(output.status.code(), Some(124));
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(words, "within: sleep used its limit of 1 seconds and is ended\n");
    assert_eq!(run(&["soon", "true"]).status.code(), Some(1));
}
