//! What was found about a guest, as an attestation result (EAR, draft-ietf-rats-ear-04): the claims of a
//! token.

use std::collections::BTreeMap;

use casemate_verify::{Judgement, Timestamp, Trust};
use kbs_types::{RuntimeData, Tee};
use serde::Serialize;
use serde_json::{Value, json};

/// Section 3.1, `eat_profile`.
const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";

/// Values of trustworthiness claims (draft-ietf-rats-ar4si, section 2.3.4).
const GENUINE_HARDWARE: i8 = 2;
const UNRECOGNIZED_HARDWARE: i8 = 97;
const APPROVED_CONFIG: i8 = 2;
const UNSUPPORTABLE_CONFIG: i8 = 96;

/// How far something can be trusted, the least first (draft-ietf-rats-ar4si, section 2.3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Tier {
    None,
    Affirming,
    Warning,
    Contraindicated,
}

impl Tier {
    /// Of a claim's value.
    fn of(value: i8) -> Self {
        match value {
            -1..=1 => Tier::None,
            -32..=31 => Tier::Affirming,
            -96..=95 => Tier::Warning,
            _ => Tier::Contraindicated,
        }
    }
}

#[derive(Serialize)]
struct Vector {
    configuration: i8,
    hardware: i8,
}

/// Section 3.2.
#[derive(Serialize)]
struct Appraisal<'a> {
    ear_status: Tier,
    ear_trustworthiness_vector: Vector,
    ear_appraisal_policy_ids: [&'static str; 1],
    ear_attester_claims: BTreeMap<&'a str, Value>,
}

#[derive(Serialize)]
struct VerifierId {
    developer: &'static str,
    build: &'static str,
}

/// Section 3.1, with the claims of a JSON web token.
#[derive(Serialize)]
struct Ear<'a> {
    eat_profile: &'static str,
    iss: &'static str,
    iat: u64,
    exp: u64,
    ear_verifier_id: VerifierId,
    ear_status: Tier,
    submods: BTreeMap<&'static str, Appraisal<'a>>,
}

/// The claims about a guest whose evidence is genuine and bound to `runtime`. They say nothing of the
/// measurement: whether it is the right one depends on the secret, and is judged for each.
///
/// # Errors
/// JSON cannot carry a claim.
pub(crate) fn claims(
    tee: Tee,
    judgement: &Judgement,
    runtime: &RuntimeData,
    now: Timestamp,
    lifetime_seconds: u64,
) -> Result<Value, serde_json::Error> {
    let genuine = matches!(judgement.root(), Some(Trust::Vendor(_)));
    let debug = judgement.debuggable || judgement.claims.is_none();
    let hardware = if genuine { GENUINE_HARDWARE } else { UNRECOGNIZED_HARDWARE };
    let configuration = if debug { UNSUPPORTABLE_CONFIG } else { APPROVED_CONFIG };
    let status = Tier::of(hardware).max(Tier::of(configuration));
    let cpu = Appraisal {
        ear_status: status,
        ear_trustworthiness_vector: Vector { configuration, hardware },
        ear_appraisal_policy_ids: ["genuine-and-fresh"],
        ear_attester_claims: BTreeMap::from([
            (tee.as_ref(), judgement.claims.clone().unwrap_or_else(|| json!({}))),
            ("runtime_data_claims", serde_json::to_value(runtime)?),
        ]),
    };
    serde_json::to_value(Ear {
        eat_profile: PROFILE,
        iss: "casemate-broker",
        iat: now.0,
        exp: now.0.saturating_add(lifetime_seconds),
        ear_verifier_id: VerifierId {
            developer: "Casemate",
            build: concat!("casemate-broker ", env!("CARGO_PKG_VERSION")),
        },
        ear_status: status,
        submods: BTreeMap::from([("cpu0", cpu)]),
    })
}

#[cfg(test)]
mod tests {
    use casemate_verify::SnpPolicy;
    use kbs_types::TeePubKey;

    use super::*;

    #[test]
    fn claims_are_those_of_the_draft() {
        let key = TeePubKey::AKP { alg: "A".into(), public_key: "B".into() };
        let runtime = RuntimeData { nonce: "n".into(), tee_pubkey: key };
        let unread = SnpPolicy::from_json(b"").map(|_| ()).unwrap_err();
        let judgement = Judgement::policy_invalid(&unread);
        let found = claims(Tee::Snp, &judgement, &runtime, Timestamp(100), 300).unwrap();
        let expected = json!({
            "eat_profile": "tag:ietf.org,2026:rats/ear#04",
            "iss": "casemate-broker",
            "iat": 100,
            "exp": 400,
            "ear_verifier_id": {
                "developer": "Casemate",
                "build": concat!("casemate-broker ", env!("CARGO_PKG_VERSION")),
            },
            "ear_status": "contraindicated",
            "submods": {"cpu0": {
                "ear_status": "contraindicated",
                "ear_trustworthiness_vector": {"configuration": 96, "hardware": 97},
                "ear_appraisal_policy_ids": ["genuine-and-fresh"],
                "ear_attester_claims": {"snp": {}, "runtime_data_claims": runtime},
            }},
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn tiers_are_those_of_the_draft() {
        let tiers = [-128, -97, -96, -33, -32, -2, -1, 0, 1, 2, 31, 32, 95, 96, 127].map(Tier::of);
        use Tier::{Affirming, Contraindicated, None, Warning};
        let (a, c, n, w) = (Affirming, Contraindicated, None, Warning);
        assert_eq!(tiers, [c, c, w, w, a, a, n, n, n, a, a, w, w, c, c]);
    }
}
