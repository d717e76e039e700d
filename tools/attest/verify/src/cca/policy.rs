//! Conditions on tokens of Arm CCA.

use serde::Deserialize;

use crate::hex::Values;
use crate::policy::{PolicyError, from_json};
use crate::weak::{Weakness, those};

/// Conditions on a token. A platform that is not in the secured state is never accepted.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CcaPolicy {
    /// The challenge of the realm token, 64 bytes.
    pub nonce: Option<Values>,
    /// Initial measurements.
    pub rim: Option<Values>,
    /// Extensible measurements: four entries, each null (any), a value or a list of values.
    pub rem: Option<Vec<Option<Values>>>,
    /// Personalization values, 64 bytes each.
    pub personalization: Option<Values>,
    /// Implementations of the platform's root of trust, 32 bytes each.
    pub implementation_ids: Option<Values>,
}

impl CcaPolicy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// Not JSON, an unknown or repeated key, or a value of the wrong type or length.
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        from_json(json, "Arm CCA")
    }

    /// Conditions that are not set, and with which a secret should not be given away.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        those([
            (self.rim.is_none(), "rim", "any realm fulfils the policy; list initial measurements"),
            (self.nonce.is_none(), "nonce", "an old token fulfils the policy; set the nonce"),
        ])
    }
}
