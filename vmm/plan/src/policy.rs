//! Policy and identity, as the configuration has them.

use casemate_config::{GuestConfig, Hex};
use casemate_launch::{IdBlock, SnpIdentity, SnpPolicy, TdxPolicy};

use crate::files::exactly;
use crate::{PlanError, Rules};

/// SEV_FEATURES with SEV-SNP alone, so that one digest holds on all hosts.
const SNP_ACTIVE: u64 = 1;

pub(crate) fn snp(config: &GuestConfig, rules: &Rules) -> SnpPolicy {
    let of_configuration = || config.snp.clone().unwrap_or_default().guest_policy();
    SnpPolicy {
        guest_policy: rules.guest_policy.unwrap_or_else(of_configuration),
        vmsa_features: rules.vmsa_features.unwrap_or(SNP_ACTIVE),
    }
}

pub(crate) fn snp_identity(config: &GuestConfig) -> Result<SnpIdentity, PlanError> {
    let snp = config.snp.clone().unwrap_or_default();
    let id_block = match (&snp.id_block, &snp.id_authentication) {
        (Some(block), Some(authentication)) => {
            let authentication: Box<[u8; 4096]> =
                exactly("ID authentication page", authentication)?;
            // The algorithm of the author key; 0 stands for none.
            let author_key = authentication[4..8] != [0; 4];
            Some(IdBlock { block: exactly("ID block", block)?, authentication, author_key })
        }
        _ => None,
    };
    let host_data = config.host_data();
    Ok(SnpIdentity { host_data, id_block, vcek_disabled: snp.vcek_disabled })
}

/// XFAM of every TD.
const X87_AND_SSE: u64 = 3;

pub(crate) fn tdx(config: &GuestConfig) -> TdxPolicy {
    let tdx = config.tdx.clone().unwrap_or_default();
    let value = |value: &Option<Hex<48>>| value.as_ref().map_or([0; 48], |value| value.0);
    TdxPolicy {
        mrconfigid: config.mrconfigid(),
        mrowner: value(&tdx.mrowner),
        mrownerconfig: value(&tdx.mrownerconfig),
        // Not measured by the launch. What `auto` is on a host, `casemate run` has put in its place.
        xfam: tdx.xfam().unwrap_or(X87_AND_SSE),
        ..TdxPolicy::new(tdx.attributes())
    }
}
