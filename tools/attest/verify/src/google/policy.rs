//! Conditions on attestations of Google's virtual TPM.

use serde::Deserialize;

use crate::policy::{PolicyError, from_json};
use crate::tpm::PcrPolicy;
use crate::weak::Weakness;

/// Conditions on nonce and registers.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct GooglePolicy {
    /// Nonce and registers.
    pub tpm: PcrPolicy,
}

impl GooglePolicy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// Not JSON, an unknown or repeated key, or a value of the wrong type or length.
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        from_json(json, "Google's virtual TPM")
    }

    /// Conditions that are not set, and with which a secret should not be given away.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        self.tpm.weaknesses()
    }
}
