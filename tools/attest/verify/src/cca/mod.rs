//! Tokens of Arm CCA: a platform token by the platform's key, and a realm token by a key that the platform token
//! hashes (draft-ffm-rats-cca-token).
//!
//! The platform's key is the trust anchor. It is known by implementation and instance; the caller names it.

pub mod checks;
mod policy;
mod token;

use serde::Serialize;

use crate::judgement::{Judgement, Ledger, Trust};
use crate::names::{self, CheckName};
use crate::tpm;

pub use policy::CcaPolicy;
pub use token::{PlatformKey, PlatformKeyError};

use token::{Platform, Realm, Token};

/// The longest token that is read.
const MAX_TOKEN: usize = 16 * 1024;

/// What a token says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CcaClaims {
    /// `"cca"`.
    pub platform: &'static str,
    /// The platform token's profile; null when it names none.
    pub platform_profile: Option<String>,
    /// The realm token's profile; null when it names none.
    pub realm_profile: Option<String>,
    /// The implementation of the platform's root of trust.
    pub implementation_id: String,
    /// The platform.
    pub instance_id: String,
    /// The platform's security lifecycle.
    pub lifecycle: u32,
    /// The realm's initial measurement.
    pub rim: String,
    /// The realm's extensible measurements.
    pub rem: Vec<String>,
    /// The realm's personalization value.
    pub personalization: String,
    /// The caller's challenge.
    pub challenge: String,
}

const ALWAYS: &[CheckName] = &[
    names::PARSE,
    checks::COLLECTION_TAG,
    names::COSE_ALGORITHM,
    checks::PLATFORM_SIGNATURE,
    checks::LIFECYCLE,
    checks::RAK_BINDING,
    checks::REALM_SIGNATURE,
    checks::IMPLEMENTATION,
    tpm::checks::NONCE,
    checks::RIM,
    checks::REM,
    checks::PERSONALIZATION,
];

/// Judges a token by the platform's key. Without a key its signature is "not done", so that nothing is accepted.
#[must_use]
pub fn verify(bytes: &[u8], key: Option<&PlatformKey>, policy: &CcaPolicy) -> Judgement<CcaClaims> {
    let mut ledger = Ledger::new(ALWAYS);
    if bytes.len() > MAX_TOKEN {
        let why = format!("{} bytes, at most {MAX_TOKEN} are read", bytes.len());
        ledger.malformed(names::PARSE, why);
        return ledger.close(None, "the token could not be read");
    }
    let token = match Token::parse(bytes) {
        Ok(token) => token,
        Err(fault) => {
            ledger.malformed(fault.check, fault.detail);
            return ledger.close(None, "the token could not be read");
        }
    };
    ledger.record(names::PARSE, Ok(format!("{} bytes", bytes.len())));
    ledger.record(checks::COLLECTION_TAG, Ok("platform and realm token".into()));
    let algorithms = token.platform_message.algorithm().and_then(|platform| {
        token.realm_message.algorithm().map(|realm| format!("{platform:?} and {realm:?}"))
    });
    ledger.record(names::COSE_ALGORITHM, algorithms);
    match key {
        Some(key) => {
            let signed = token.platform_message.check(key.point());
            let detail = "the named key signed the platform token";
            ledger.record(checks::PLATFORM_SIGNATURE, signed.map(|()| detail.into()));
        }
        None => ledger.not_done(checks::PLATFORM_SIGNATURE, "no key of the platform was named"),
    }
    let Token { platform, realm, .. } = &token;
    ledger.record(checks::LIFECYCLE, platform.check_lifecycle());
    ledger.record(checks::RAK_BINDING, realm.check_binding(platform));
    let signed = realm.point().and_then(|point| token.realm_message.check(&point));
    let detail = "the realm's attestation key signed the realm token";
    ledger.record(checks::REALM_SIGNATURE, signed.map(|()| detail.into()));
    check_policy(&mut ledger, platform, realm, policy);
    let trust = key.is_some().then_some(Trust::Caller);
    let claims = claims(platform, realm);
    let debuggable = platform.is_debug();
    let nothing = "an earlier check failed, so there was nothing to compare";
    Judgement { trust, debuggable, ..ledger.close(Some(claims), nothing) }
}

fn check_policy(
    ledger: &mut Ledger,
    platform: &Platform<'_>,
    realm: &Realm<'_>,
    policy: &CcaPolicy,
) {
    ledger.condition(checks::IMPLEMENTATION, policy.implementation_ids.as_ref(), |list| {
        list.check("the implementation", platform.implementation_id)
    });
    ledger.condition(tpm::checks::NONCE, policy.nonce.as_ref(), |wanted| {
        wanted.check("the challenge", realm.challenge)
    });
    ledger.condition(checks::RIM, policy.rim.as_ref(), |list| list.check("RIM", realm.rim));
    ledger.condition(checks::REM, policy.rem.as_ref(), |wanted| {
        if wanted.len() != realm.rem.len() {
            return Err(format!("the policy has {} entries instead of 4", wanted.len()));
        }
        for (number, (list, found)) in wanted.iter().zip(&realm.rem).enumerate() {
            if let Some(list) = list {
                list.check(&format!("REM{number}"), found)?;
            }
        }
        Ok("the measurements are what the policy names".into())
    });
    ledger.condition(checks::PERSONALIZATION, policy.personalization.as_ref(), |list| {
        list.check("the personalization value", realm.personalization)
    });
}

fn claims(platform: &Platform<'_>, realm: &Realm<'_>) -> CcaClaims {
    let text = crate::hex::text;
    CcaClaims {
        platform: "cca",
        platform_profile: platform.profile.clone(),
        realm_profile: realm.profile.clone(),
        implementation_id: text(platform.implementation_id),
        instance_id: text(platform.instance_id),
        lifecycle: platform.lifecycle,
        rim: text(realm.rim),
        rem: realm.rem.iter().map(|value| text(value)).collect(),
        personalization: text(realm.personalization),
        challenge: text(realm.challenge),
    }
}
