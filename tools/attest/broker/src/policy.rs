//! What a secret is released to.

use casemate_verify::azure::AzurePolicy;
use casemate_verify::{SnpPolicy, TdxPolicy, Weakness};
use ring::digest::{SHA384, digest};
use serde::{Deserialize, Serialize};

use crate::seal::hex;

/// A secret's policies, as the texts that were given: one per kind of guest. A guest of a kind
/// without a policy gets nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReleasePolicy {
    /// For SEV-SNP guests; JSON as [`SnpPolicy`] takes it.
    pub snp: Option<String>,
    /// For TDX guests; JSON as [`TdxPolicy`] takes it.
    pub tdx: Option<String>,
    /// For Azure's guests; JSON as [`AzurePolicy`] takes it.
    #[serde(default)]
    pub azure: Option<String>,
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
    /// It sets what the protocol sets.
    #[error("the policy sets \"tpm.nonce\", which the protocol binds to the nonce and the key")]
    Nonce,
}

impl ReleasePolicy {
    /// Reads the texts, and lists what they leave open that a secret should not be given away with: the
    /// platform, and the weakness.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn check(&self) -> Result<Vec<(&'static str, Weakness)>, PolicyError> {
        let mut open = Vec::new();
        if let Some(text) = &self.snp {
            let policy = SnpPolicy::from_json(text.as_bytes())?;
            if policy.report_data.is_some() {
                return Err(PolicyError::ReportData);
            }
            open.extend(policy.weaknesses().into_iter().map(|weakness| ("snp", weakness)));
        }
        if let Some(text) = &self.tdx {
            let policy = TdxPolicy::from_json(text.as_bytes())?;
            if policy.report_data.is_some() {
                return Err(PolicyError::ReportData);
            }
            open.extend(policy.weaknesses().into_iter().map(|weakness| ("tdx", weakness)));
        }
        if let Some(text) = &self.azure {
            let policy = AzurePolicy::from_json(text.as_bytes())?;
            if policy.tpm.nonce.is_some() {
                return Err(PolicyError::Nonce);
            }
            // The protocol sets the nonce.
            let weaknesses = policy.weaknesses().into_iter().filter(|one| one.key != "nonce");
            open.extend(weaknesses.map(|weakness| ("azure", weakness)));
        }
        Ok(open)
    }

    /// Whether there is no policy at all, so that nobody gets the secret.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snp.is_none() && self.tdx.is_none() && self.azure.is_none()
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
        ReleasePolicy { snp: Some(text.into()), ..ReleasePolicy::default() }
            .check()
            .map(|open| open.len())
    }

    #[test]
    fn lists_what_each_policy_leaves_open() {
        let all = snp("{}").unwrap();
        assert_eq!(all, 5);
        let tdx = ReleasePolicy { tdx: Some("{}".into()), ..ReleasePolicy::default() };
        assert_eq!(tdx.check().unwrap().len(), 3);
        let both = ReleasePolicy { snp: Some("{}".into()), ..tdx };
        let open = both.check().unwrap();
        assert_eq!((open[0].0, open[all].0, open.len()), ("snp", "tdx", all + 3));
        assert!(ReleasePolicy::default().is_empty() && !both.is_empty());
    }

    #[test]
    fn an_azure_policy_names_the_system_and_leaves_the_nonce_to_the_protocol() {
        let open = |text: &str| {
            let policy = ReleasePolicy { azure: Some(text.into()), ..ReleasePolicy::default() };
            assert!(!policy.is_empty());
            policy.check().map(|open| open.iter().map(|(_, one)| one.key).collect::<Vec<_>>())
        };
        assert_eq!(open("{}").unwrap(), ["pcrs", "min_reported_tcb"]);
        let tcb = r#""snp": {"allow_debug": false, "allow_migration_agent": false, "vmpl": [0],
            "min_reported_tcb": {"snp": 22}}"#;
        let pcrs = format!(r#"{{"tpm": {{"pcrs": {{"4": "{}"}}}}, {tcb}}}"#, "00".repeat(32));
        assert_eq!(open(&pcrs).unwrap(), Vec::<&str>::new());
        assert!(matches!(open(r#"{"tpm": {"nonce": "00"}}"#), Err(PolicyError::Nonce)));
    }

    #[test]
    fn refuses_what_cannot_be_a_policy() {
        assert!(matches!(snp("[]"), Err(PolicyError::Unreadable(_))));
        let data = format!("{{\"report_data\": \"{}\"}}", "00".repeat(64));
        assert!(matches!(snp(&data), Err(PolicyError::ReportData)));
    }
}
