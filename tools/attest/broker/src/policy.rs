//! What a secret is released to.

use casemate_verify::{SnpPolicy, TdxPolicy};
use ring::digest::{SHA384, digest};
use serde::{Deserialize, Serialize};

use crate::seal::hex;

/// A secret's policies, as the texts that were given: one per kind of processor. A guest on a kind
/// without a policy gets nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReleasePolicy {
    /// For SEV-SNP guests; JSON as [`SnpPolicy`] takes it.
    pub snp: Option<String>,
    /// For TDX guests; JSON as [`TdxPolicy`] takes it.
    pub tdx: Option<String>,
}

/// A policy that cannot be used for a release.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] casemate_verify::PolicyError),
    /// It sets what the protocol sets.
    #[error("the policy sets \"report_data\", which the protocol binds to the nonce and the key")]
    ReportData,
}

impl ReleasePolicy {
    /// Reads the texts, to say now what is wrong with them, and what they leave open that a secret
    /// should not be given away with; one sentence each.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn check(&self) -> Result<Vec<&'static str>, PolicyError> {
        let mut open = Vec::new();
        if let Some(text) = &self.snp {
            let policy = SnpPolicy::from_json(text.as_bytes())?;
            if policy.report_data.is_some() {
                return Err(PolicyError::ReportData);
            }
            if policy.measurements.is_none() && policy.id_key_digests.is_none() {
                open.push(
                    "any guest may have it: \"measurements\" (or \"id_key_digests\") is not set",
                );
            }
            if policy.allow_debug != Some(false) {
                open.push("the host may debug the guest and read it: \"allow_debug\" is not false");
            }
        }
        if let Some(text) = &self.tdx {
            let policy = TdxPolicy::from_json(text.as_bytes())?;
            if policy.report_data.is_some() {
                return Err(PolicyError::ReportData);
            }
            if policy.mrtd.is_none() {
                open.push("any trust domain may have it: \"mrtd\" is not set");
            }
            if policy.allow_debug != Some(false) {
                open.push(
                    "the host may debug the domain and read it: \"allow_debug\" is not false",
                );
            }
            if policy.tcb_statuses.is_none() {
                open.push("platforms with known holes may have it: \"tcb_statuses\" is not set");
            }
        }
        if self.snp.is_none() && self.tdx.is_none() {
            open.push("nobody may have it: there is no policy at all");
        }
        Ok(open)
    }
}

/// What a policy's text is called in the audit log: its SHA-384.
pub(crate) fn policy_digest(text: &str) -> String {
    hex(digest(&SHA384, text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snp(text: &str) -> Result<usize, PolicyError> {
        ReleasePolicy { snp: Some(text.into()), tdx: None }.check().map(|open| open.len())
    }

    #[test]
    fn says_what_a_policy_leaves_open() {
        let digest = "00".repeat(48);
        assert_eq!(snp("{}").unwrap(), 2);
        assert_eq!(snp("{\"allow_debug\": false}").unwrap(), 1);
        let named = format!("{{\"measurements\": \"{digest}\"}}");
        assert_eq!(snp(&named).unwrap(), 1);
        let both = format!("{{\"measurements\": \"{digest}\", \"allow_debug\": false}}");
        assert_eq!(snp(&both).unwrap(), 0);
        assert_eq!(ReleasePolicy::default().check().unwrap().len(), 1);
        let tdx = ReleasePolicy { snp: None, tdx: Some("{}".into()) };
        assert_eq!(tdx.check().unwrap().len(), 3);
    }

    #[test]
    fn refuses_what_cannot_be_a_policy() {
        assert!(matches!(snp("[]"), Err(PolicyError::Unreadable(_))));
        let data = format!("{{\"report_data\": \"{}\"}}", "00".repeat(64));
        assert!(matches!(snp(&data), Err(PolicyError::ReportData)));
    }
}
