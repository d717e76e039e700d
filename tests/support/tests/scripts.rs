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
timeout: sending signal TERM to command 'target/debug/deps/ends-1'
error: test failed, to rerun pass `-p a --test ends`

Caused by:
  process didn't exit successfully: `timeout 50m target/debug/deps/ends-1` (exit status: 124)
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
