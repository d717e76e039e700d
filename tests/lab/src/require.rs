//! What tests do where the lab is missing.

use crate::{Host, Lab};

/// An emulated host for a test, or nothing where something that takes minutes to build is missing;
/// the test then says so, and ends. With `CI` or `CASEMATE_REQUIRE_LAB` in the environment (and not
/// `0` or empty) nothing may be missing.
///
/// # Panics
///
/// Something is missing, and nothing may be.
pub fn require(host: Host) -> Option<Lab> {
    let lab = Lab::new(host);
    let Err(missing) = lab.check() else { return Some(lab) };
    let chain = chain(&missing);
    let set = |name| std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0");
    assert!(!set("CI") && !set("CASEMATE_REQUIRE_LAB"), "the {host} host is missing: {chain}");
    eprintln!("SKIPPED, NOT PASSED: the {host} host is missing: {chain}");
    None
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
