//! Conditions on a TPM's quote.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::hex::{Hex, OneOrMany, bytes_of};
use crate::weak::{Weakness, those};

use super::registers::Selected;

/// The registers that a quote must have unless a policy says otherwise: those that firmware, boot loader and
/// kernel extend. From 16 on, guests can reset registers.
pub const VTPM_PCRS: std::ops::Range<u32> = 0..16;
/// The longest nonce: TPM2B_DATA.
const MAX_NONCE: usize = 64;

/// Conditions on registers and freshness.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PcrPolicy {
    /// The nonce, 1 to 64 bytes, compared whole.
    #[serde(deserialize_with = "nonce")]
    pub nonce: Option<Vec<u8>>,
    /// Values of registers, by number.
    pub pcrs: Option<BTreeMap<u32, OneOrMany<Hex<32>>>>,
    /// Sets of registers with values, one per system: all registers of one set must fit.
    pub pcr_sets: Option<Vec<BTreeMap<u32, OneOrMany<Hex<32>>>>>,
    /// The registers that must be selected; by default [`VTPM_PCRS`].
    pub pcr_selection: Option<Vec<u32>>,
}

fn nonce<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let bytes = bytes_of(&text).map_err(D::Error::custom)?;
    if (1..=MAX_NONCE).contains(&bytes.len()) {
        Ok(Some(bytes))
    } else {
        Err(D::Error::custom(format!("a nonce has 1 to {MAX_NONCE} bytes, not {}", bytes.len())))
    }
}

impl PcrPolicy {
    /// That every register that is needed is in the signed selection.
    pub(crate) fn check_selection(&self, selected: Selected) -> Result<String, String> {
        let needed: Vec<u32> = self.pcr_selection.clone().unwrap_or_else(|| VTPM_PCRS.collect());
        if needed.is_empty() {
            return Err("the policy's list of registers is empty and allows nothing".into());
        }
        match needed.iter().find(|register| !selected.has(**register)) {
            None => Ok(selected.to_string()),
            Some(missing) => Err(format!("PCR {missing} is not selected, only {selected}")),
        }
    }

    /// Registers with values, if the policy names any; an empty object allows nothing.
    pub(crate) fn wanted(&self) -> Option<impl Iterator<Item = (u32, &OneOrMany<Hex<32>>)>> {
        let pcrs = self.pcrs.as_ref()?;
        Some(pcrs.iter().map(|(register, values)| (*register, values)))
    }

    /// Conditions that are not set.
    pub(crate) fn weaknesses(&self) -> Vec<Weakness> {
        let resettable = |register: &u32| (16..24).contains(register);
        let names_system = |pcrs: &BTreeMap<u32, _>| pcrs.keys().any(|one| !resettable(one));
        let stable = self.pcrs.as_ref().is_some_and(names_system)
            || self.pcr_sets.as_ref().is_some_and(|sets| sets.iter().all(names_system));
        those([
            (self.nonce.is_none(), "nonce", "an old quote fulfils the policy; set the nonce"),
            (
                !stable,
                "pcrs",
                "any system fulfils the policy; set values of PCR 4, 8, 9 or 11, which name what booted",
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<PcrPolicy, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn selections_must_have_what_is_needed() {
        let all = Selected::of(&[0xff, 0xff, 0xff]).unwrap();
        let some = Selected::of(&[0x10, 0, 0x81]).unwrap();
        assert!(PcrPolicy::default().check_selection(all).is_ok());
        assert!(PcrPolicy::default().check_selection(some).is_err());
        let four = read(r#"{"pcr_selection": [4]}"#).unwrap();
        assert!(four.check_selection(some).is_ok());
        let none = read(r#"{"pcr_selection": []}"#).unwrap();
        assert!(none.check_selection(all).is_err());
    }

    #[test]
    fn nonces_have_a_length() {
        for json in [r#"{"nonce": ""}"#, r#"{"nonce": "0"}"#, r#"{"nonce": "zz"}"#] {
            assert!(read(json).is_err(), "{json}");
        }
        assert!(read(&format!(r#"{{"nonce": "{}"}}"#, "00".repeat(65))).is_err());
        assert_eq!(read(r#"{"nonce": "0aFF"}"#).unwrap().nonce, Some(vec![0x0a, 0xff]));
        assert_eq!(read(r#"{"nonce": null}"#).unwrap(), PcrPolicy::default());
    }
}
