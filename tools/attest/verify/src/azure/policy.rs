//! Conditions on the evidence of Azure's guests.

use serde::Deserialize;

use crate::hex::{Hex, OneOrMany};
use crate::policy::{PolicyError, from_json, object};
use crate::snp::SnpPolicy;
use crate::tdx::TdxPolicy;
use crate::tpm::PcrPolicy;
use crate::weak::Weakness;

/// Conditions on the report, the quote, and the hardware's report.
#[derive(Clone, PartialEq, Debug)]
pub struct AzurePolicy {
    /// Nonce and registers of the virtual TPM.
    pub tpm: PcrPolicy,
    /// `user-data` of the runtime data, 64 bytes each.
    pub user_data: Option<OneOrMany<Hex<64>>>,
    /// `true`: the paravisor must report that secure boot is on.
    pub require_secure_boot: Option<bool>,
    /// Conditions on the SEV-SNP report.
    pub snp: SnpPolicy,
    /// Conditions on the TDX quote.
    pub tdx: TdxPolicy,
}

/// As JSON has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, deserialize_with = "object")]
    tpm: Option<PcrPolicy>,
    user_data: Option<OneOrMany<Hex<64>>>,
    require_secure_boot: Option<bool>,
    #[serde(default, deserialize_with = "object")]
    snp: Option<SnpPolicy>,
    #[serde(default, deserialize_with = "object")]
    tdx: Option<TdxPolicy>,
}

impl AzurePolicy {
    /// What holds when nobody gives a policy: that of SEV-SNP and TDX, and a quote over PCR 0 to 15.
    #[must_use]
    pub fn strict() -> Self {
        AzurePolicy {
            tpm: PcrPolicy::default(),
            user_data: None,
            require_secure_boot: None,
            snp: SnpPolicy::strict(),
            tdx: TdxPolicy::strict(),
        }
    }

    /// Conditions of a genuine machine alone: everything else is open but the registers that must be selected.
    #[must_use]
    pub fn genuine() -> Self {
        AzurePolicy {
            snp: SnpPolicy::default(),
            tdx: TdxPolicy::default(),
            ..AzurePolicy::strict()
        }
    }

    /// Reads a policy from JSON. `snp` and `tdx` are policies of their kinds; when one is absent, the strict one
    /// holds.
    ///
    /// # Errors
    /// Not JSON, an unknown or repeated key, or a value of the wrong type or length.
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        let Document { tpm, user_data, require_secure_boot, snp, tdx } = from_json(json, "Azure")?;
        let strict = AzurePolicy::strict();
        Ok(AzurePolicy {
            tpm: tpm.unwrap_or_default(),
            user_data,
            require_secure_boot,
            snp: snp.unwrap_or(strict.snp),
            tdx: tdx.unwrap_or(strict.tdx).checked()?,
        })
    }

    /// Conditions that are not set, and with which a secret should not be given away. The paravisor is
    /// Microsoft's, so that its measurement is not one of them.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        let mut open = self.tpm.weaknesses();
        open.extend(self.snp.weaknesses());
        open.extend(self.tdx.weaknesses());
        open.retain(|weakness| !["measurements", "mrtd"].contains(&weakness.key));
        open
    }
}
