//! What evidence must say to be accepted.
//!
//! A key that is null or absent sets no condition, an unknown key is an error, an empty list allows
//! nothing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::hex::{Hex, OneOrMany};
use crate::snp::SigningKey;

/// A policy that cannot be read or understood.
#[derive(Debug, thiserror::Error)]
#[error("could not read the policy as JSON for {kind}")]
pub struct PolicyError {
    kind: &'static str,
    source: serde_json::Error,
}

/// Conditions on an SEV-SNP report.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnpPolicy {
    /// `false`: the guest's policy must forbid debugging.
    pub allow_debug: Option<bool>,
    /// `false`: the guest's policy must forbid simultaneous multithreading.
    pub allow_smt: Option<bool>,
    /// `false`: the guest's policy must forbid a migration agent.
    pub allow_migration_agent: Option<bool>,
    /// `true`: the guest's policy must ask for a single socket.
    pub require_single_socket: Option<bool>,
    /// The privilege levels (0 to 3) from which the report may have been asked for.
    pub vmpl: Option<Vec<u32>>,
    /// The kinds of key that may have signed.
    pub signing_keys: Option<Vec<SigningKey>>,
    /// The report versions that are accepted, of those that are known (2 to 5).
    pub versions: Option<Vec<u32>>,
    /// Launch measurements, 48 bytes each.
    pub measurements: Option<OneOrMany<Hex<48>>>,
    /// HOST_DATA, 32 bytes each.
    pub host_data: Option<OneOrMany<Hex<32>>>,
    /// REPORT_DATA, 64 bytes each.
    pub report_data: Option<OneOrMany<Hex<64>>>,
    /// The lowest guest security version.
    pub min_guest_svn: Option<u32>,
    /// The lowest security version of each component of REPORTED_TCB.
    #[serde(deserialize_with = "optional_object")]
    pub min_reported_tcb: Option<MinimumTcb>,
    /// Digests of ID keys, 48 bytes each.
    pub id_key_digests: Option<OneOrMany<Hex<48>>>,
    /// Digests of author keys, 48 bytes each.
    pub author_key_digests: Option<OneOrMany<Hex<48>>>,
    /// `true`: a revocation list must be given.
    pub crl_required: Option<bool>,
}

/// The lowest security version per component of a TCB_VERSION; absent: any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MinimumTcb {
    /// Boot loader.
    pub bl: Option<u8>,
    /// Trusted execution environment (PSP operating system).
    pub tee: Option<u8>,
    /// SNP firmware.
    pub snp: Option<u8>,
    /// Microcode.
    pub ucode: Option<u8>,
    /// Firmware of the FMC; Turin and later only.
    pub fmc: Option<u8>,
}

impl SnpPolicy {
    /// What holds when nobody gives a policy: no debugging, no migration agent, VMPL 0, VCEK or VLEK, any
    /// known version.
    #[must_use]
    pub fn strict() -> Self {
        SnpPolicy {
            allow_debug: Some(false),
            allow_migration_agent: Some(false),
            vmpl: Some(vec![0]),
            signing_keys: Some(vec![SigningKey::Vcek, SigningKey::Vlek]),
            ..SnpPolicy::default()
        }
    }

    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// Not JSON, an unknown or repeated key, or a value of the wrong type or length.
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        from_json(json, "SEV-SNP")
    }
}

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
    /// TD attributes as in the quote, 8 bytes each, least significant first.
    pub td_attributes: Option<OneOrMany<Hex<8>>>,
    /// XFAM as in the quote, 8 bytes each, least significant first.
    pub xfam: Option<OneOrMany<Hex<8>>>,
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
        let policy: TdxPolicy = from_json(json, "TDX")?;
        match policy.rtmr.as_ref().map(Vec::len) {
            None | Some(0 | 4) => Ok(policy),
            Some(other) => Err(PolicyError {
                kind: "TDX",
                source: serde::de::Error::custom(format!(
                    "rtmr: expected four entries (or none, which allows nothing), found {other}"
                )),
            }),
        }
    }
}

fn from_json<T: DeserializeOwned>(json: &[u8], kind: &'static str) -> Result<T, PolicyError> {
    serde_json::from_slice(json)
        .map(|Object(policy)| policy)
        .map_err(|source| PolicyError { kind, source })
}

/// A value that must be spelled as a JSON object. Derived code would also take an array of the
/// fields in order, and then `[]` would be a policy without any condition.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(value)| value))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_set_no_condition() {
        let nulls = r#"{"allow_debug": null, "vmpl": null, "measurements": null,
            "min_reported_tcb": null, "report_data": null, "min_guest_svn": null}"#;
        assert_eq!(SnpPolicy::from_json(nulls.as_bytes()).unwrap(), SnpPolicy::default());
        assert_eq!(SnpPolicy::from_json(b"{}").unwrap(), SnpPolicy::default());
        assert_eq!(TdxPolicy::from_json(b"{\"rtmr\": null}").unwrap(), TdxPolicy::default());
    }

    #[test]
    fn an_array_is_never_a_policy() {
        for json in ["[]", "[false]", "null", "\"\"", "0"] {
            assert!(SnpPolicy::from_json(json.as_bytes()).is_err(), "{json}");
            assert!(TdxPolicy::from_json(json.as_bytes()).is_err(), "{json}");
        }
        assert!(SnpPolicy::from_json(b"{\"min_reported_tcb\": []}").is_err());
    }

    #[test]
    fn digests_have_their_full_length() {
        for digits in [0, 2, 94, 95, 97, 98] {
            let json = format!("{{\"measurements\": [\"{}\"]}}", "a".repeat(digits));
            assert!(SnpPolicy::from_json(json.as_bytes()).is_err(), "{digits}");
        }
        let json = format!("{{\"measurements\": [\"{}\"]}}", "aA".repeat(48));
        assert!(SnpPolicy::from_json(json.as_bytes()).is_ok());
    }
}
