//! What tests do where the lab is missing.

use std::error::Error;
use std::io::Write as _;

use crate::{Host, Lab, LabError};

/// An emulated host for a test, or nothing where something that takes minutes to build is missing;
/// the test then says so, and ends. With `CI` or `CASEMATE_REQUIRE_LAB` in the environment (and not
/// `0` or empty) nothing may be missing.
///
/// # Panics
///
/// Something is missing, and nothing may be.
pub fn require(host: Host) -> Option<Lab> {
    require_ok(checked(Lab::new(host)), &format!("the {host} host"))
}

/// As [`require`], for a host that is like no other.
///
/// # Panics
///
/// As for [`require`].
pub fn require_lab(lab: Lab) -> Option<Lab> {
    require_ok(checked(lab), "an emulated host")
}

fn checked(lab: Lab) -> Result<Lab, LabError> {
    lab.check().map(|()| lab)
}

/// What a test needs, or nothing where that is missing; the test then ends. Where nothing may be
/// missing, as for [`require`], it fails.
///
/// # Panics
///
/// `result` is an error, and nothing may be missing.
pub fn require_ok<T, E: Into<Box<dyn Error + Send + Sync>>>(
    result: Result<T, E>,
    what: &str,
) -> Option<T> {
    let missing = match result {
        Ok(there) => return Some(there),
        Err(missing) => chain(&*missing.into()),
    };
    assert!(!nothing_may_be_missing(), "{what} is missing: {missing}");
    let line = format!("SKIPPED, NOT PASSED: {what} is missing: {missing}\n");
    // Not eprintln: the test harness keeps that to itself when a test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    None
}

/// Whether `CI` or `CASEMATE_REQUIRE_LAB` is in the environment, and not `0` or empty.
pub fn nothing_may_be_missing() -> bool {
    let set = |name| std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0");
    set("CI") || set("CASEMATE_REQUIRE_LAB")
}

/// An error with all its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
