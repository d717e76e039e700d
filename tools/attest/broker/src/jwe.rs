//! Encryption to the guest's key. What a guest does with the result is
//! [`casemate_protocol::TeeKey::open`].

use aes_kw::{KeyInit as _, KwAes256};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use casemate_protocol::{EC_ALGORITHM, EC_CURVE, ENCRYPTION, key_encryption_key};
use kbs_types::{ProtectedHeader, Response, TeePubKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::SystemRandom;
use rsa::{BoxedUint, PublicKey};
use serde_json::{Map, json};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::seal::random;

const RSA_ALGORITHM: &str = "RSA-OAEP-256";
/// Moduli of guests' keys, in bits. Larger ones cost time and give nothing.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A key that cannot be encrypted to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error(
        "keys of the kind {0} are not known here: {EC_ALGORITHM} over {EC_CURVE} and {RSA_ALGORITHM} are"
    )]
    Kind(String),
    #[error("the guest's key is malformed")]
    Key,
    #[error("the system gave no random bytes")]
    Random,
}

/// A guest's key, ready to be encrypted to.
pub(crate) enum Recipient {
    /// An uncompressed point of P-256.
    Ec(Vec<u8>),
    Rsa(Box<PublicKey>),
}

impl Recipient {
    /// Reads a key, so that what is wrong with it is said before a secret is at stake.
    pub(crate) fn new(key: &TeePubKey) -> Result<Self, SealError> {
        let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| SealError::Key);
        match key {
            TeePubKey::EC { crv, alg, x, y } if crv == EC_CURVE && alg == EC_ALGORITHM => {
                let (x, y) = (bytes(x)?, bytes(y)?);
                if x.len() != 32 || y.len() != 32 {
                    return Err(SealError::Key);
                }
                Ok(Recipient::Ec([&[4], x.as_slice(), &y].concat()))
            }
            TeePubKey::RSA { alg, k_mod, k_exp } if alg == RSA_ALGORITHM => {
                let number = |text: &str| {
                    let bytes = bytes(text)?;
                    let bits = u32::try_from(bytes.len() * 8).map_err(|_| SealError::Key)?;
                    BoxedUint::from_be_slice(&bytes, bits).map_err(|_| SealError::Key)
                };
                let key = PublicKey::new_with_size_limits(number(k_mod)?, number(k_exp)?, RSA_BITS);
                key.map(|key| Recipient::Rsa(Box::new(key))).map_err(|_| SealError::Key)
            }
            TeePubKey::EC { crv, alg, .. } => Err(SealError::Kind(format!("{alg} over {crv}"))),
            TeePubKey::RSA { alg, .. } | TeePubKey::AKP { alg, .. } => {
                Err(SealError::Kind(alg.clone()))
            }
        }
    }

    /// Encrypts `secret` so that only the key's owner can read it.
    pub(crate) fn seal(&self, secret: &[u8]) -> Result<Response, SealError> {
        let key = random::<32>().ok_or(SealError::Random)?;
        let (algorithm, other_fields, encrypted_key) = match self {
            Recipient::Ec(point) => {
                let (epk, encrypted) = wrap(point, &key)?;
                (EC_ALGORITHM, Map::from_iter([("epk".to_owned(), epk)]), encrypted)
            }
            Recipient::Rsa(public) => {
                let encrypted =
                    public.oaep_encrypt::<Sha256>(&*key).map_err(|_| SealError::Random)?;
                (RSA_ALGORITHM, Map::new(), encrypted)
            }
        };
        let protected =
            ProtectedHeader { alg: algorithm.into(), enc: ENCRYPTION.into(), other_fields };
        let associated = protected.generate_aad().map_err(|_| SealError::Key)?;
        // The key is new, so any nonce is.
        let iv = random::<NONCE_LEN>().ok_or(SealError::Random)?;
        let mut ciphertext = secret.to_vec();
        let tag = UnboundKey::new(&AES_256_GCM, &*key)
            .and_then(|key| {
                LessSafeKey::new(key).seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(*iv),
                    Aad::from(associated),
                    &mut ciphertext,
                )
            })
            .map_err(|_| SealError::Key)?;
        Ok(Response {
            protected,
            encrypted_key,
            aad: None,
            iv: iv.to_vec(),
            ciphertext,
            tag: tag.as_ref().to_vec(),
        })
    }
}

/// ECDH-ES+A256KW: our ephemeral key as JSON, and the content's key, encrypted.
fn wrap(
    point: &[u8],
    key: &Zeroizing<[u8; 32]>,
) -> Result<(serde_json::Value, Vec<u8>), SealError> {
    let ephemeral = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
        .map_err(|_| SealError::Random)?;
    let public = ephemeral.compute_public_key().map_err(|_| SealError::Random)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, point);
    let encrypting =
        agree_ephemeral(ephemeral, &peer, key_encryption_key).map_err(|_| SealError::Key)?;
    let mut encrypted = vec![0; 40];
    KwAes256::new((&*encrypting).into())
        .wrap_key(&**key, &mut encrypted)
        .map_err(|_| SealError::Key)?;
    let (x, y) = public.as_ref()[1..].split_at(32);
    let epk = json!({
        "crv": EC_CURVE,
        "kty": "EC",
        "x": BASE64_URL_SAFE_NO_PAD.encode(x),
        "y": BASE64_URL_SAFE_NO_PAD.encode(y),
    });
    Ok((epk, encrypted))
}

#[cfg(test)]
mod tests {
    use casemate_protocol::TeeKey;

    use super::*;

    #[test]
    fn only_the_keys_owner_reads_it() {
        let (owner, other) = (TeeKey::generate().unwrap(), TeeKey::generate().unwrap());
        let message = Recipient::new(owner.public()).unwrap().seal(b"a secret").unwrap();
        let text = serde_json::to_string(&message).unwrap();
        assert!(other.open(message).is_err());
        assert_eq!(
            owner.open(serde_json::from_str(&text).unwrap()).unwrap().as_slice(),
            b"a secret"
        );
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused() {
        let ec = |crv: &str, alg: &str, x: &[u8], y: &[u8]| TeePubKey::EC {
            crv: crv.into(),
            alg: alg.into(),
            x: BASE64_URL_SAFE_NO_PAD.encode(x),
            y: BASE64_URL_SAFE_NO_PAD.encode(y),
        };
        let rsa = |alg: &str, n: &[u8], e: &[u8]| TeePubKey::RSA {
            alg: alg.into(),
            k_mod: BASE64_URL_SAFE_NO_PAD.encode(n),
            k_exp: BASE64_URL_SAFE_NO_PAD.encode(e),
        };
        let odd = |length: usize| [vec![0xff; length], vec![1]].concat();
        for key in [
            ec("P-521", EC_ALGORITHM, &[1; 66], &[1; 66]),
            ec(EC_CURVE, "ECDH-ES", &[1; 32], &[1; 32]),
            ec(EC_CURVE, EC_ALGORITHM, &[1; 31], &[1; 32]),
            rsa("RSA1_5", &odd(255), &[1, 0, 1]),
            rsa(RSA_ALGORITHM, &odd(127), &[1, 0, 1]),
            rsa(RSA_ALGORITHM, &odd(1024), &[1, 0, 1]),
            rsa(RSA_ALGORITHM, &odd(255), &[]),
            rsa(RSA_ALGORITHM, &odd(255), &[1]),
            rsa(RSA_ALGORITHM, &[], &[1, 0, 1]),
            TeePubKey::AKP { alg: "ML-KEM-768".into(), public_key: String::new() },
        ] {
            assert!(Recipient::new(&key).is_err(), "{key:?}");
        }
        // Not on the curve: found when it is used.
        let off = ec(EC_CURVE, EC_ALGORITHM, &[1; 32], &[1; 32]);
        assert!(Recipient::new(&off).unwrap().seal(b"a secret").is_err());
    }
}
