//! Conditions on documents of Nitro enclaves.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::hex::{Values, bytes_of};
use crate::policy::{PolicyError, from_json};
use crate::weak::{Weakness, those};

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| bytes_of(&text).map_err(D::Error::custom)).transpose()
}

/// Conditions on a document. An enclave in debug mode is never accepted.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NitroPolicy {
    /// Values of registers by number; a register that the document lacks fulfils none.
    pub pcrs: Option<BTreeMap<u32, Values>>,
    /// The nonce, compared whole.
    #[serde(deserialize_with = "bytes")]
    pub nonce: Option<Vec<u8>>,
    /// `user_data`, compared whole.
    #[serde(deserialize_with = "bytes")]
    pub user_data: Option<Vec<u8>>,
}

impl NitroPolicy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// Not JSON, an unknown or repeated key, or a value of the wrong type or length.
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        from_json(json, "Nitro")
    }

    /// Conditions that are not set, and with which a secret should not be given away.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        let names_image = self.pcrs.as_ref().is_some_and(|pcrs| pcrs.contains_key(&0));
        those([
            (!names_image, "pcrs", "any enclave fulfils the policy; set PCR 0, the image"),
            (self.nonce.is_none(), "nonce", "an old document fulfils the policy; set the nonce"),
        ])
    }
}
