//! Ready policies, one per known vulnerability and product.
//!
//! Each forbids what the strict policy forbids, and asks for what shows that the vulnerability is closed. None names
//! a guest: add `measurements`.

use serde::{Deserialize, Serialize};

/// A policy, and why it is as it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyPolicy {
    /// The vulnerability.
    pub title: String,
    /// Documents with the values.
    pub sources: Vec<String>,
    /// The policy, as [`SnpPolicy`](crate::SnpPolicy) takes it.
    pub policy: serde_json::Value,
}

/// The files `policies/NAME.json` of this crate.
const FILES: [(&str, &str); 8] = [
    ("badram-genoa", include_str!("../policies/badram-genoa.json")),
    ("badram-milan", include_str!("../policies/badram-milan.json")),
    ("ciphertext", include_str!("../policies/ciphertext.json")),
    ("entrysign-genoa", include_str!("../policies/entrysign-genoa.json")),
    ("entrysign-milan", include_str!("../policies/entrysign-milan.json")),
    ("milan-root-seed", include_str!("../policies/milan-root-seed.json")),
    ("rmpocalypse-genoa", include_str!("../policies/rmpocalypse-genoa.json")),
    ("stackwarp-genoa", include_str!("../policies/stackwarp-genoa.json")),
];

/// The names of the policies, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The policy of this name.
#[must_use]
pub fn find(name: &str) -> Option<ReadyPolicy> {
    let (_, text) = FILES.iter().find(|(one, _)| *one == name)?;
    // A test reads each.
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use casemate_test_support::evidence::file;

    use super::*;
    use crate::snp::{SnpEvidence, chain_for, verify};
    use crate::{SnpPolicy, Timestamp};

    fn policy(name: &str) -> SnpPolicy {
        let ready = find(name).unwrap();
        SnpPolicy::from_json(ready.policy.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn each_is_strict_and_open_only_about_the_guest_and_its_firmware() {
        let mut sorted: Vec<_> = names().collect();
        sorted.sort_unstable();
        assert_eq!(names().collect::<Vec<_>>(), sorted);
        for name in names() {
            let (found, strict) = (policy(name), SnpPolicy::strict());
            let fields = |policy: &SnpPolicy| {
                (policy.allow_debug, policy.allow_migration_agent, policy.vmpl.clone())
            };
            assert_eq!(fields(&found), fields(&strict), "{name}");
            assert_ne!(found, strict, "{name}");
            assert!(!find(name).unwrap().sources.is_empty(), "{name}");
            let open = found.weaknesses();
            assert!(open.iter().all(|one| ["measurements", "min_reported_tcb"].contains(&one.key)));
        }
        assert_eq!(find("other"), None);
    }

    /// The checks that fail for a genuine report.
    fn failing(case: &str, name: &str) -> Vec<&'static str> {
        let part = |part: &str| file(&format!("snp/{case}/{part}")).unwrap();
        let (report, vek) = (part("report.bin"), part("vek.der"));
        let (ask, ark) = chain_for(&vek).unwrap();
        let evidence = SnpEvidence { report: &report, vek: &vek, ask, ark, crl: None };
        let at = Timestamp::parse("2026-11-22T00:00:00Z").unwrap();
        let judgement = verify(&evidence, &policy(name), None, at);
        judgement.failed().map(crate::CheckName::as_str).collect()
    }

    #[test]
    fn genuine_reports_of_vulnerable_machines_fail() {
        assert_eq!(failing("oak-milan_oc_release", "milan-root-seed"), ["product"]);
        assert!(!failing("oak-genoa_oc", "milan-root-seed").contains(&"product"));
        for name in ["entrysign-milan", "entrysign-genoa"] {
            let milan = failing("go-sev-guest-milan", name);
            assert!(
                milan.contains(&"tcb-minimum") || milan.contains(&"product"),
                "{name}: {milan:?}"
            );
        }
        assert!(failing("go-sev-guest-milan", "entrysign-milan").contains(&"tcb-launch"));
        assert!(failing("oak-milan_oc_release", "ciphertext").contains(&"platform-info"));
    }
}
