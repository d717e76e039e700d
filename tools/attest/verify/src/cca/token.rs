//! The token's two halves and their claims, by key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_foreign::Foreign;
use ring::digest::{SHA256, SHA384, SHA512, digest};
use serde::Deserialize;

use crate::cbor::Item;
use crate::cose::Sign1;
use crate::names::{self, CheckName};

use super::checks;

/// Tag of a CCA collection, and its two entries.
const COLLECTION: u64 = 399;
const PLATFORM: i128 = 44234;
const REALM: i128 = 44241;
/// Claims of both.
const CHALLENGE: i128 = 10;
const PROFILE: i128 = 265;
/// Claims of the platform.
const INSTANCE_ID: i128 = 256;
const LIFECYCLE: i128 = 2395;
const IMPLEMENTATION_ID: i128 = 2396;
/// Claims of the realm.
const PERSONALIZATION: i128 = 44235;
const RAK: i128 = 44237;
const RIM: i128 = 44238;
const REM: i128 = 44239;
const RAK_HASH: i128 = 44240;
/// States in which debugging is off.
const SECURED: std::ops::RangeInclusive<u32> = 0x3000..=0x30ff;
/// Bytes of an uncompressed point of P-384.
const POINT: usize = 97;

/// Why a token cannot be read.
pub(super) struct Fault {
    pub(super) check: CheckName,
    pub(super) detail: String,
}

/// A token, taken apart.
pub(super) struct Token<'a> {
    pub(super) platform_message: Sign1<'a>,
    pub(super) platform: Platform<'a>,
    pub(super) realm_message: Sign1<'a>,
    pub(super) realm: Realm<'a>,
}

/// Claims of the platform.
pub(super) struct Platform<'a> {
    challenge: &'a [u8],
    pub(super) profile: Option<String>,
    pub(super) implementation_id: &'a [u8],
    pub(super) instance_id: &'a [u8],
    pub(super) lifecycle: u32,
}

/// Claims of the realm.
pub(super) struct Realm<'a> {
    pub(super) challenge: &'a [u8],
    pub(super) profile: Option<String>,
    pub(super) personalization: &'a [u8],
    rak: &'a [u8],
    rak_hash: &'a str,
    pub(super) rim: &'a [u8],
    pub(super) rem: Vec<&'a [u8]>,
}

impl<'a> Token<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let fault = |check| move |detail| Fault { check, detail };
        let item = Item::parse(bytes).map_err(fault(names::PARSE))?;
        let Item::Tag(COLLECTION, collection) = item else {
            let detail = "the token does not have the tag 399 of a CCA collection";
            return Err(fault(checks::COLLECTION_TAG)(detail.into()));
        };
        let half = |key: i128| collection.get(&Item::Integer(key)).and_then(Item::bytes);
        let (Some(platform), Some(realm)) = (half(PLATFORM), half(REALM)) else {
            let detail = "the collection does not have a platform and a realm token";
            return Err(fault(checks::COLLECTION_TAG)(detail.into()));
        };
        let read = |what: &str, why: String| fault(names::PARSE)(format!("{what} token: {why}"));
        let platform_message = Sign1::parse(platform).map_err(|why| read("platform", why))?;
        let realm_message = Sign1::parse(realm).map_err(|why| read("realm", why))?;
        Ok(Token {
            platform: Platform::parse(platform_message.payload)
                .map_err(|why| read("platform", why))?,
            realm: Realm::parse(realm_message.payload).map_err(|why| read("realm", why))?,
            platform_message,
            realm_message,
        })
    }
}

/// Claims by key.
struct Claims<'a>(Item<'a>);

impl<'a> Claims<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, String> {
        Item::parse(payload).map(Claims)
    }

    fn get(&self, key: i128) -> Option<&Item<'a>> {
        self.0.get(&Item::Integer(key))
    }

    fn bytes(&self, key: i128, lengths: &[usize]) -> Result<&'a [u8], String> {
        let bytes = self.get(key).and_then(Item::bytes);
        bytes
            .filter(|bytes| lengths.contains(&bytes.len()))
            .ok_or_else(|| format!("claim {key} is missing or not of its length"))
    }

    /// The profile as text; older tokens have none.
    fn profile(&self) -> Option<String> {
        self.get(PROFILE).and_then(Item::text).map(|text| Foreign(text).to_string())
    }
}

/// Lengths of SHA-256, SHA-384 and SHA-512.
const HASHES: [usize; 3] = [32, 48, 64];

impl<'a> Platform<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, String> {
        let claims = Claims::parse(payload)?;
        let lifecycle = claims.get(LIFECYCLE).and_then(Item::integer);
        Ok(Platform {
            challenge: claims.bytes(CHALLENGE, &HASHES)?,
            profile: claims.profile(),
            implementation_id: claims.bytes(IMPLEMENTATION_ID, &[32])?,
            instance_id: claims.bytes(INSTANCE_ID, &[33])?,
            lifecycle: lifecycle
                .and_then(|state| u32::try_from(state).ok())
                .ok_or_else(|| format!("claim {LIFECYCLE} is missing or not a number"))?,
        })
    }

    pub(super) fn is_debug(&self) -> bool {
        !SECURED.contains(&self.lifecycle)
    }

    pub(super) fn check_lifecycle(&self) -> Result<String, String> {
        let state = format!("{:#x}", self.lifecycle);
        if self.is_debug() { Err(format!("state {state} is not secured")) } else { Ok(state) }
    }
}

impl<'a> Realm<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, String> {
        let claims = Claims::parse(payload)?;
        let rem = claims.get(REM).and_then(Item::array).unwrap_or_default();
        let rem: Option<Vec<&[u8]>> = rem
            .iter()
            .map(|value| value.bytes().filter(|value| HASHES.contains(&value.len())))
            .collect();
        let rak = claims.get(RAK).and_then(Item::bytes);
        let hash = claims.get(RAK_HASH).and_then(Item::text);
        Ok(Realm {
            challenge: claims.bytes(CHALLENGE, &[64])?,
            profile: claims.profile(),
            personalization: claims.bytes(PERSONALIZATION, &[64])?,
            rak: rak.ok_or_else(|| format!("claim {RAK} is missing or not bytes"))?,
            rak_hash: hash.ok_or_else(|| format!("claim {RAK_HASH} is missing or not text"))?,
            rim: claims.bytes(RIM, &HASHES)?,
            rem: rem
                .filter(|rem| rem.len() == 4)
                .ok_or_else(|| format!("claim {REM} is not four measurements"))?,
        })
    }

    /// That the platform's challenge is the hash of the key as it stands in the token.
    pub(super) fn check_binding(&self, platform: &Platform<'_>) -> Result<String, String> {
        let algorithm = match self.rak_hash {
            "sha-256" => &SHA256,
            "sha-384" => &SHA384,
            "sha-512" => &SHA512,
            other => return Err(format!("unknown hash \"{}\"", Foreign(other))),
        };
        let expected = digest(algorithm, self.rak);
        if platform.challenge == expected.as_ref() {
            Ok(format!("{} of the key", self.rak_hash))
        } else {
            Err("the platform token's challenge is of another key".into())
        }
    }

    /// The key: an uncompressed point, or a COSE_Key (RFC 9052, section 7; RFC 9053, section 7.1.1).
    pub(super) fn point(&self) -> Result<Vec<u8>, String> {
        if self.rak.len() == POINT && self.rak.first() == Some(&4) {
            return Ok(self.rak.to_vec());
        }
        let key = Item::parse(self.rak)?;
        let number = |name: i128| key.get(&Item::Integer(name)).and_then(Item::integer);
        let coordinate = |name: i128| {
            key.get(&Item::Integer(name)).and_then(Item::bytes).filter(|bytes| bytes.len() == 48)
        };
        match (number(1), number(-1), coordinate(-2), coordinate(-3)) {
            (Some(2), Some(2), Some(x), Some(y)) => Ok([&[4], x, y].concat()),
            _ => Err("the realm's attestation key is not a P-384 key".into()),
        }
    }
}

/// A key of a platform that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PlatformKeyError {
    /// Not the JSON that it should be.
    #[error("the platform's key is not a JSON web key with kty, crv, x and y")]
    Json(#[from] serde_json::Error),
    /// Another kind of key.
    #[error("the platform's key is not of P-256 or P-384")]
    Curve,
}

/// The public key of a platform, as the caller names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlatformKey(Vec<u8>);

impl PlatformKey {
    /// Reads a JSON web key of P-256 or P-384.
    ///
    /// # Errors
    /// See [`PlatformKeyError`].
    pub fn from_jwk(json: &[u8]) -> Result<Self, PlatformKeyError> {
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            crv: String,
            x: String,
            y: String,
        }
        let Jwk { kty, crv, x, y } = serde_json::from_slice(json)?;
        let length = match (kty.as_str(), crv.as_str()) {
            ("EC", "P-256") => 32,
            ("EC", "P-384") => 48,
            _ => return Err(PlatformKeyError::Curve),
        };
        let number =
            |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == length);
        match (number(&x), number(&y)) {
            (Some(x), Some(y)) => Ok(PlatformKey([&[4], &x[..], &y].concat())),
            _ => Err(PlatformKeyError::Curve),
        }
    }

    pub(crate) fn point(&self) -> &[u8] {
        &self.0
    }
}
