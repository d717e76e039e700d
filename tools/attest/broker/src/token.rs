//! What was found about a guest, as an EAT attestation result (EAR, draft-ietf-rats-ear): a JSON web
//! token signed with the broker's own key.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use casemate_verify::snp::Trust;
use casemate_verify::{Claims, Timestamp};
use ear::claim::{APPROVED_CONFIG, GENUINE_HARDWARE, UNRECOGNIZED_HARDWARE, UNSUPPORTABLE_CONFIG};
use ear::{Appraisal, EAR_PROFILE, Ear, RawValue, VerifierID};
use kbs_types::{RuntimeData, Tee};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde::Serialize;
use serde_json::{Value, json};

use crate::store::{Kind, Store, StoreError};

/// The key that signs tokens.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// The store's key; made when there is none yet.
    pub(crate) fn of(store: &Store) -> Result<Self, StoreError> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = store.read_or_make(Kind::SigningKey, || {
            let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).ok()?;
            Some(document.as_ref().to_vec().into())
        })?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, &document, &random)
            .map_err(|_| StoreError::Sealed("signing-key".into()))?;
        Ok(Signer { key, random })
    }

    /// The public key as a JSON web key set, by which others check tokens.
    pub(crate) fn key_set(&self) -> Value {
        let (x, y) = self.coordinates();
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
            "kid": self.key_id(), "x": x, "y": y,
        }]})
    }

    fn coordinates(&self) -> (String, String) {
        // Uncompressed (SEC 1, section 2.3.3): 04, then the coordinates.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y))
    }

    /// The key's thumbprint (RFC 7638).
    fn key_id(&self) -> String {
        let (x, y) = self.coordinates();
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()))
    }

    /// Signs claims as a JSON web token; `None` without randomness.
    pub(crate) fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.key_id()});
        let [header, claims] =
            [&header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The claims about a guest whose evidence is genuine and bound to `runtime`. They say nothing of the
/// measurement: whether it is the right one depends on the secret, and is judged for each.
///
/// # Errors
/// The evidence has a claim that an EAR cannot carry.
pub(crate) fn claims(
    tee: Tee,
    evidence: &Claims,
    runtime: &RuntimeData,
    now: Timestamp,
    lifetime_seconds: u64,
) -> Result<Value, serde_json::Error> {
    let (genuine, debug) = match evidence {
        Claims::Snp(claims) => {
            (matches!(claims.trust, Some(Trust::Amd(_))), claims.policy.debug_allowed)
        }
        Claims::Tdx(claims) => (true, claims.debug),
        Claims::None {} => (false, true),
    };
    let mut cpu = Appraisal::new();
    cpu.trust_vector.hardware.set(if genuine { GENUINE_HARDWARE } else { UNRECOGNIZED_HARDWARE });
    cpu.trust_vector.configuration.set(if debug { UNSUPPORTABLE_CONFIG } else { APPROVED_CONFIG });
    cpu.policy_ids = vec!["genuine-and-fresh".into()];
    cpu.attester_claims = BTreeMap::from([
        (tee.as_ref().to_owned(), raw(evidence)?),
        ("runtime_data_claims".into(), raw(runtime)?),
    ]);
    let mut result = Ear::new();
    result.profile = EAR_PROFILE.into();
    result.iat = i64::try_from(now.0).unwrap_or(i64::MAX);
    result.vid = VerifierID {
        build: concat!("casemate-broker ", env!("CARGO_PKG_VERSION")).into(),
        developer: "Casemate".into(),
    };
    result.submods = BTreeMap::from([("cpu0".into(), cpu)]);
    result.update_status_from_trust_vector();

    let mut claims = serde_json::to_value(&result)?;
    // Claims of the token, not of the result. `Ear` would hold `exp` against a clock of its own.
    claims["iss"] = "casemate-broker".into();
    claims["exp"] = now.0.saturating_add(lifetime_seconds).into();
    Ok(claims)
}

fn raw(claims: &impl Serialize) -> Result<RawValue, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(claims)?)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;
    use crate::seal::StoreKey;

    #[test]
    fn tokens_are_signed_by_the_key_of_the_set_which_stays() {
        let folder = tempfile::tempdir().unwrap();
        let key = StoreKey::generate().unwrap();
        let text = key.to_text();
        let path = folder.path().join("store");
        let store = Store::open(&path, key).unwrap();
        let signer = Signer::of(&store).unwrap();
        let token = signer.sign(&json!({"a": 1})).unwrap();
        drop(store);

        let store = Store::open(&path, StoreKey::parse(text.as_bytes()).unwrap()).unwrap();
        let set = Signer::of(&store).unwrap().key_set();
        let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
        let field = |name: &str| bytes(set["keys"][0][name].as_str().unwrap());
        let point = [vec![4], field("x"), field("y")].concat();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(signed.as_bytes(), &bytes(signature))
            .unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let header: Value = serde_json::from_slice(&bytes(header)).unwrap();
        assert_eq!(header["kid"], set["keys"][0]["kid"]);
        assert_eq!(bytes(claims), b"{\"a\":1}");
    }
}
