//! Conditions on an SEV-SNP report.

use serde::Deserialize;

use super::SigningKey;
use super::product::Product;
use crate::hex::{Hex, OneOrMany};
use crate::policy::{PolicyError, from_json, object};
use crate::weak::{Weakness, those};

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
    #[serde(deserialize_with = "object")]
    pub min_reported_tcb: Option<MinimumTcb>,
    /// The same for COMMITTED_TCB, below which the platform's firmware cannot go back.
    #[serde(deserialize_with = "object")]
    pub min_committed_tcb: Option<MinimumTcb>,
    /// The same for LAUNCH_TCB, which ran when the guest was launched.
    #[serde(deserialize_with = "object")]
    pub min_launch_tcb: Option<MinimumTcb>,
    /// What the platform must say of itself.
    #[serde(deserialize_with = "object")]
    pub platform_info: Option<PlatformInfo>,
    /// Bits of the mitigation vector that must be set, at launch and now; reports from version 5.
    pub mitigations: Option<u64>,
    /// Chips, 64 bytes each; shorter identifiers are followed by zeros.
    pub chip_ids: Option<OneOrMany<Hex<64>>>,
    /// Processor products.
    pub products: Option<Vec<Product>>,
    /// FAMILY_ID of the ID block, 16 bytes each.
    pub family_ids: Option<OneOrMany<Hex<16>>>,
    /// IMAGE_ID of the ID block, 16 bytes each.
    pub image_ids: Option<OneOrMany<Hex<16>>>,
    /// Digests of ID keys, 48 bytes each.
    pub id_key_digests: Option<OneOrMany<Hex<48>>>,
    /// Digests of author keys, 48 bytes each.
    pub author_key_digests: Option<OneOrMany<Hex<48>>>,
    /// `true`: a revocation list must be given.
    pub crl_required: Option<bool>,
}

/// Bits of PLATFORM_INFO (SEV-SNP firmware ABI, "ATTESTATION_REPORT Structure"): each must be as given; absent:
/// either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlatformInfo {
    /// Bit 0: simultaneous multithreading is on.
    pub smt: Option<bool>,
    /// Bit 1: all memory is encrypted (TSME).
    pub tsme: Option<bool>,
    /// Bit 2: memory has error correction.
    pub ecc: Option<bool>,
    /// Bit 3: power readings (RAPL) are off.
    pub rapl_disabled: Option<bool>,
    /// Bit 4: the host cannot read ciphertext of guests.
    pub ciphertext_hiding: Option<bool>,
    /// Bit 5: the firmware has checked memory for aliases since the last reset.
    pub alias_check: Option<bool>,
}

impl PlatformInfo {
    /// Whether each bit is as wanted.
    pub(crate) fn check(&self, found: u64) -> Result<String, String> {
        let bits = [
            ("smt", self.smt),
            ("tsme", self.tsme),
            ("ecc", self.ecc),
            ("rapl_disabled", self.rapl_disabled),
            ("ciphertext_hiding", self.ciphertext_hiding),
            ("alias_check", self.alias_check),
        ];
        for (bit, (name, wanted)) in bits.into_iter().enumerate() {
            let found = found >> bit & 1 == 1;
            if wanted.is_some_and(|wanted| wanted != found) {
                return Err(format!("{name} is {found}, the policy wants {}", !found));
            }
        }
        Ok(format!("{found:#x}"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_set_no_condition() {
        let nulls = r#"{"allow_debug": null, "vmpl": null, "measurements": null,
            "min_reported_tcb": null, "report_data": null, "min_guest_svn": null}"#;
        assert_eq!(SnpPolicy::from_json(nulls.as_bytes()).unwrap(), SnpPolicy::default());
        assert_eq!(SnpPolicy::from_json(b"{}").unwrap(), SnpPolicy::default());
    }

    #[test]
    fn an_array_is_never_a_policy() {
        for json in ["[]", "[false]", "null", "\"\"", "0", "{\"min_reported_tcb\": []}"] {
            assert!(SnpPolicy::from_json(json.as_bytes()).is_err(), "{json}");
        }
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

    fn open(json: &str) -> Vec<&'static str> {
        let open = SnpPolicy::from_json(json.as_bytes()).unwrap().weaknesses();
        open.iter().map(|weakness| weakness.key).collect()
    }

    #[test]
    fn each_key_that_is_missing_is_listed() {
        crate::weak::tests::one_by_one(
            &serde_json::json!({
                "measurements": "00".repeat(48), "allow_debug": false,
                "allow_migration_agent": false, "vmpl": [0], "min_reported_tcb": {"bl": 4},
            }),
            open,
        );
    }

    #[test]
    fn values_that_set_no_condition_are_listed() {
        assert!(open("{\"allow_debug\": true}").contains(&"allow_debug"));
        assert!(open("{\"allow_migration_agent\": null}").contains(&"allow_migration_agent"));
        assert!(open("{\"min_reported_tcb\": {}}").contains(&"min_reported_tcb"));
        let signed = format!("{{\"id_key_digests\": \"{}\"}}", "00".repeat(48));
        assert!(!open(&signed).contains(&"measurements"));
    }

    #[test]
    fn bits_of_the_platform_are_compared_one_by_one() {
        let want = |json: &str| serde_json::from_str::<PlatformInfo>(json).unwrap();
        assert!(want("{}").check(0x3f).is_ok());
        assert!(want(r#"{"smt": false, "alias_check": true}"#).check(0b10_0000).is_ok());
        assert!(want(r#"{"smt": false}"#).check(0b10_0001).is_err());
        assert!(want(r#"{"alias_check": true}"#).check(0b01_1111).is_err());
        assert!(want(r#"{"ciphertext_hiding": true}"#).check(0b1_0000).is_ok());
        assert!(
            want(r#"{"tsme": true, "ecc": true, "rapl_disabled": true}"#).check(0b1110).is_ok()
        );
        assert!(serde_json::from_str::<PlatformInfo>(r#"{"alias": true}"#).is_err());
    }
}
