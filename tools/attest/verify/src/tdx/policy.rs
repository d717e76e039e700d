//! Conditions on a TDX quote.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hex::{Hex, OneOrMany};
use crate::policy::{PolicyError, from_json};
use crate::weak::{Weakness, those};

/// Conditions on a TDX quote.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TdxPolicy {
    /// `false`: the TD must not be under debug.
    pub allow_debug: Option<bool>,
    /// The TCB statuses that are accepted. Absent: any but `Revoked`, which is never accepted.
    #[serde(alias = "accepted_tcb_statuses", alias = "tcb_status")]
    pub tcb_statuses: Option<Vec<TcbStatus>>,
    /// How long after the date of the platform's TCB level an `OutOfDate` status is still accepted.
    #[serde(alias = "grace_period")]
    pub grace_period_seconds: Option<u64>,
    /// The lowest number of the TCB evaluation that judges the platform: older collateral, which may know fewer
    /// vulnerabilities, is not accepted.
    pub min_tcb_evaluation_data_number: Option<u32>,
    /// MRTD, 48 bytes each.
    pub mrtd: Option<OneOrMany<Hex<48>>>,
    /// RTMR0 to RTMR3: four entries, each null (any), a value or a list of values.
    pub rtmr: Option<Vec<Option<OneOrMany<Hex<48>>>>>,
    /// MRCONFIGID, 48 bytes each.
    pub mrconfigid: Option<OneOrMany<Hex<48>>>,
    /// MROWNER, 48 bytes each.
    pub mrowner: Option<OneOrMany<Hex<48>>>,
    /// MROWNERCONFIG, 48 bytes each.
    pub mrownerconfig: Option<OneOrMany<Hex<48>>>,
    /// MRSERVICETD, 48 bytes each. Absent: zero, no service TD is bound.
    pub mrservicetd: Option<OneOrMany<Hex<48>>>,
    /// TD attributes as in the quote, 8 bytes each, least significant first.
    pub td_attributes: Option<OneOrMany<Hex<8>>>,
    /// Bits that the TD's attributes may have.
    pub allowed_td_attributes: Option<Hex<8>>,
    /// XFAM as in the quote, 8 bytes each, least significant first.
    pub xfam: Option<OneOrMany<Hex<8>>>,
    /// Bits that XFAM may have.
    pub allowed_xfam: Option<Hex<8>>,
    /// REPORTDATA, 64 bytes each.
    pub report_data: Option<OneOrMany<Hex<64>>>,
}

impl TdxPolicy {
    /// What holds when nobody gives a policy: no debugging, TCB status `UpToDate`.
    #[must_use]
    pub fn strict() -> Self {
        TdxPolicy {
            allow_debug: Some(false),
            tcb_statuses: Some(vec![TcbStatus::UpToDate]),
            ..TdxPolicy::default()
        }
    }

    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// Not JSON, an unknown or repeated key, or a value of the wrong type or length.
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        from_json::<Self>(json, "TDX")?.checked()
    }

    /// That the list of registers has an entry for each.
    pub(crate) fn checked(self) -> Result<Self, PolicyError> {
        match self.rtmr.as_ref().map(Vec::len) {
            None | Some(0 | 4) => Ok(self),
            Some(other) => Err(PolicyError {
                kind: "TDX",
                source: serde::de::Error::custom(format!(
                    "rtmr: expected four entries (or none, which allows nothing), found {other}"
                )),
            }),
        }
    }
}

/// How a platform's TCB compares with what Intel publishes, by Intel's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are Intel's, explained in its TCB information API")]
pub enum TcbStatus {
    UpToDate,
    SWHardeningNeeded,
    ConfigurationNeeded,
    ConfigurationAndSWHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    TDRelaunchAdvised,
    TDRelaunchAdvisedConfigurationNeeded,
    Revoked,
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
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

    #[test]
    fn null_sets_no_condition_and_an_array_is_never_a_policy() {
        assert_eq!(TdxPolicy::from_json(b"{\"rtmr\": null}").unwrap(), TdxPolicy::default());
        for json in ["[]", "[false]", "null", "\"\"", "0"] {
            assert!(TdxPolicy::from_json(json.as_bytes()).is_err(), "{json}");
        }
    }

    fn open(json: &str) -> Vec<&'static str> {
        let open = TdxPolicy::from_json(json.as_bytes()).unwrap().weaknesses();
        open.iter().map(|weakness| weakness.key).collect()
    }

    #[test]
    fn each_key_that_is_missing_is_listed() {
        crate::weak::tests::one_by_one(
            &serde_json::json!({
                "mrtd": "00".repeat(48), "allow_debug": false, "tcb_statuses": ["UpToDate"],
            }),
            open,
        );
    }

    #[test]
    fn out_of_date_needs_a_grace_period() {
        let late = "{\"tcb_statuses\": [\"OutOfDate\"]}";
        assert!(open(late).contains(&"grace_period_seconds"));
        let graced = "{\"tcb_statuses\": [\"OutOfDate\"], \"grace_period_seconds\": 1}";
        assert!(!open(graced).contains(&"grace_period_seconds"));
    }
}
