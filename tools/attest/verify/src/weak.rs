//! Conditions that a policy for a secret should set, and what is open without each.

use std::fmt;

use serde::Serialize;

use crate::policy::{MinimumTcb, SnpPolicy, TcbStatus, TdxPolicy};

/// Something that a policy leaves open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Weakness {
    /// The key that would close it.
    pub key: &'static str,
    /// What is open, and the value that closes it.
    pub detail: &'static str,
}

impl fmt::Display for Weakness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.detail)
    }
}

/// The weaknesses of which the condition holds.
fn those<const N: usize>(list: [(bool, &'static str, &'static str); N]) -> Vec<Weakness> {
    let open = list.into_iter().filter(|(open, ..)| *open);
    open.map(|(_, key, detail)| Weakness { key, detail }).collect()
}

impl SnpPolicy {
    /// Conditions that this policy does not set, and with which a secret should not be given away.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        let no_minimum = self.min_reported_tcb.is_none_or(|least| least == MinimumTcb::default());
        those([
            (
                self.measurements.is_none() && self.id_key_digests.is_none(),
                "measurements",
                "any guest fulfils the policy; list measurements, or id_key_digests",
            ),
            (
                self.allow_debug != Some(false),
                "allow_debug",
                "the host may debug the guest and read its memory; set false",
            ),
            (
                self.allow_migration_agent != Some(false),
                "allow_migration_agent",
                "a migration agent may export the guest with its memory; set false",
            ),
            (
                self.vmpl.is_none(),
                "vmpl",
                "software of any privilege level in the guest may ask; set [0], or the level of the kernel",
            ),
            (
                no_minimum,
                "min_reported_tcb",
                "processors with old firmware, which has known holes, fulfil the policy; set bl, snp and ucode",
            ),
        ])
    }
}

impl TdxPolicy {
    /// Conditions that this policy does not set, and with which a secret should not be given away.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        let outdated = |status: &TcbStatus| {
            matches!(status, TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded)
        };
        let statuses = self.tcb_statuses.as_deref();
        let outdated_for_ever = self.grace_period_seconds.is_none()
            && statuses.is_some_and(|statuses| statuses.iter().any(outdated));
        those([
            (self.mrtd.is_none(), "mrtd", "any trust domain fulfils the policy; list MRTDs"),
            (
                self.allow_debug != Some(false),
                "allow_debug",
                "the host may debug the trust domain and read its memory; set false",
            ),
            (
                statuses.is_none(),
                "tcb_statuses",
                "platforms with known holes fulfil the policy; set [\"UpToDate\"], or more",
            ),
            (
                outdated_for_ever,
                "grace_period_seconds",
                "platforms that are out of date fulfil the policy for ever; set a number of seconds",
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(weaknesses: &[Weakness]) -> Vec<&'static str> {
        weaknesses.iter().map(|weakness| weakness.key).collect()
    }

    fn snp(json: &str) -> Vec<&'static str> {
        keys(&SnpPolicy::from_json(json.as_bytes()).unwrap().weaknesses())
    }

    fn tdx(json: &str) -> Vec<&'static str> {
        keys(&TdxPolicy::from_json(json.as_bytes()).unwrap().weaknesses())
    }

    /// A policy without anything open, and what is open without each of its keys.
    fn one_by_one(whole: &serde_json::Value, open: impl Fn(&str) -> Vec<&'static str>) {
        assert!(open(&whole.to_string()).is_empty(), "{whole}");
        let keys: Vec<_> = whole.as_object().unwrap().keys().cloned().collect();
        for key in keys {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(&key);
            assert_eq!(open(&less.to_string()), [key]);
        }
    }

    #[test]
    fn each_key_that_is_missing_is_listed() {
        let whole = serde_json::json!({
            "measurements": "00".repeat(48), "allow_debug": false, "allow_migration_agent": false,
            "vmpl": [0], "min_reported_tcb": {"bl": 4},
        });
        one_by_one(&whole, snp);
        let whole = serde_json::json!({
            "mrtd": "00".repeat(48), "allow_debug": false, "tcb_statuses": ["UpToDate"],
        });
        one_by_one(&whole, tdx);
    }

    #[test]
    fn values_that_set_no_condition_are_listed() {
        assert!(snp("{\"allow_debug\": true}").contains(&"allow_debug"));
        assert!(snp("{\"allow_migration_agent\": null}").contains(&"allow_migration_agent"));
        assert!(snp("{\"min_reported_tcb\": {}}").contains(&"min_reported_tcb"));
        let signed = format!("{{\"id_key_digests\": \"{}\"}}", "00".repeat(48));
        assert!(!snp(&signed).contains(&"measurements"));
        let late = "{\"tcb_statuses\": [\"OutOfDate\"]}";
        assert!(tdx(late).contains(&"grace_period_seconds"));
        let graced = "{\"tcb_statuses\": [\"OutOfDate\"], \"grace_period_seconds\": 1}";
        assert!(!tdx(graced).contains(&"grace_period_seconds"));
    }
}
