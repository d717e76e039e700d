//! The documentation names every check and every policy key, and its policies can be read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_verify::azure::AzurePolicy;
use casemate_verify::nitro::NitroPolicy;
use casemate_verify::{SnpPolicy, TdxPolicy, check_names};

const VERIFY: &str = include_str!("../../../../docs/src/reference/verify.md");
const POLICY: &str = include_str!("../../../../docs/src/reference/policy.md");

#[test]
fn every_check_is_explained() {
    for name in check_names() {
        assert!(VERIFY.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn the_example_policies_can_be_read() {
    let examples: Vec<String> = POLICY
        .split("\n    {\n")
        .skip(1)
        .map(|rest| format!("{{\n{}}}", rest.split("\n    }\n").next().unwrap()))
        .collect();
    let [snp, tdx, azure, nitro] = examples.as_slice() else {
        panic!("{} examples", examples.len())
    };
    SnpPolicy::from_json(snp.as_bytes()).unwrap();
    TdxPolicy::from_json(tdx.as_bytes()).unwrap();
    AzurePolicy::from_json(azure.as_bytes()).unwrap();
    NitroPolicy::from_json(nitro.as_bytes()).unwrap();
}
