//! COSE_Sign1 (RFC 9052, section 4.2): a payload with one signature, checked over the bytes that came.

use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey, VerificationAlgorithm,
};

use crate::cbor::Item;

/// The tag of COSE_Sign1.
const SIGN1: u64 = 18;
/// The header parameter "alg".
const ALG: Item<'static> = Item::Integer(1);

/// Algorithms that are accepted (RFC 9053, section 2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Algorithm {
    /// ECDSA with SHA-256, over P-256.
    Es256,
    /// ECDSA with SHA-384, over P-384.
    Es384,
}

/// A signed payload.
pub(crate) struct Sign1<'a> {
    protected: &'a [u8],
    pub(crate) payload: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Sign1<'a> {
    /// Reads a message, tagged or not.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let item = Item::parse(bytes)?;
        let item = match item {
            Item::Tag(SIGN1, inner) => *inner,
            other => other,
        };
        let parts = item.array().unwrap_or_default();
        let [protected, unprotected, payload, signature] = parts else {
            return Err("not a COSE_Sign1 message of four parts".into());
        };
        if unprotected.map().is_none() {
            return Err("the unprotected header is not a map".into());
        }
        match (protected.bytes(), payload.bytes(), signature.bytes()) {
            (Some(protected), Some(payload), Some(signature)) => {
                Ok(Sign1 { protected, payload, signature })
            }
            _ => Err("header, payload and signature are not byte strings".into()),
        }
    }

    /// The algorithm that the protected header names.
    pub(crate) fn algorithm(&self) -> Result<Algorithm, String> {
        let header = Item::parse(self.protected)?;
        match header.get(&ALG).and_then(Item::integer) {
            Some(-7) => Ok(Algorithm::Es256),
            Some(-35) => Ok(Algorithm::Es384),
            other => Err(format!("algorithm {other:?} is not ES256 (-7) or ES384 (-35)")),
        }
    }

    /// That the key with this uncompressed point signed the message.
    pub(crate) fn check(&self, point: &[u8]) -> Result<(), String> {
        let algorithm: &dyn VerificationAlgorithm = match (self.algorithm()?, point.len()) {
            (Algorithm::Es256, 65) => &ECDSA_P256_SHA256_FIXED,
            (Algorithm::Es384, 97) => &ECDSA_P384_SHA384_FIXED,
            (algorithm, length) => {
                return Err(format!("a key of {length} bytes does not fit {algorithm:?}"));
            }
        };
        UnparsedPublicKey::new(algorithm, point)
            .verify(&self.signed(), self.signature)
            .map_err(|_| "the key did not sign this message".into())
    }

    /// Sig_structure (section 4.4).
    fn signed(&self) -> Vec<u8> {
        let mut bytes = vec![0x84];
        bytes.push(0x6a);
        bytes.extend(b"Signature1");
        put_bytes(&mut bytes, self.protected);
        put_bytes(&mut bytes, &[]);
        put_bytes(&mut bytes, self.payload);
        bytes
    }
}

/// A byte string with the shortest head.
fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    match (u8::try_from(bytes.len()), u16::try_from(bytes.len()), u32::try_from(bytes.len())) {
        (Ok(length @ 0..24), ..) => to.push(0x40 | length),
        (Ok(length), ..) => to.extend([0x58, length]),
        (_, Ok(length), _) => {
            to.push(0x59);
            to.extend(length.to_be_bytes());
        }
        // Messages are shorter than 4 GiB.
        (.., length) => {
            to.push(0x5a);
            to.extend(length.unwrap_or(u32::MAX).to_be_bytes());
        }
    }
    to.extend(bytes);
}
