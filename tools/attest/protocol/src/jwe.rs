//! Encryption to the guest's key: JSON Web Encryption (RFC 7516) with `ECDH-ES+A256KW` over P-256
//! (RFC 7518, section 4.6) and `A256GCM`, as the protocol's clients use it unless told otherwise.

use aes_kw::{KeyInit as _, KwAes256};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use kbs_types::{Response, TeePubKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::digest::{Context, SHA256};
use ring::rand::SystemRandom;
use serde_json::Value;
use zeroize::Zeroizing;

/// How the content's key is encrypted.
pub const EC_ALGORITHM: &str = "ECDH-ES+A256KW";
/// The curve of both parties' keys.
pub const EC_CURVE: &str = "P-256";
/// How the content is encrypted.
pub const ENCRYPTION: &str = "A256GCM";

/// A message that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JweError {
    /// The system has no randomness to make a key of.
    #[error("could not make a key pair")]
    KeyGeneration,
    /// Encrypted in a way that was not asked for.
    #[error("the secret is encrypted with {found}, not with {EC_ALGORITHM} and {ENCRYPTION}")]
    Algorithm {
        /// What the message names.
        found: String,
    },
    /// The sender's key is missing, malformed, or of another curve.
    #[error("the secret's header has no proper {EC_CURVE} key \"epk\"")]
    SenderKey,
    /// It was encrypted to another key, or changed on the way.
    #[error("the secret does not decrypt: it is not for this key, or was changed on the way")]
    Decrypt,
}

/// A key pair for one message. It lives in this process's memory only.
pub struct TeeKey {
    private: EphemeralPrivateKey,
    public: TeePubKey,
}

impl TeeKey {
    /// Makes a fresh key pair.
    ///
    /// # Errors
    /// [`JweError::KeyGeneration`].
    pub fn generate() -> Result<Self, JweError> {
        let failed = |_| JweError::KeyGeneration;
        let private =
            EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).map_err(failed)?;
        let public = private.compute_public_key().map_err(failed)?;
        // Uncompressed (SEC 1, section 2.3.3): 04, then the coordinates.
        let (x, y) = public.as_ref()[1..].split_at(32);
        let public = TeePubKey::EC {
            crv: EC_CURVE.into(),
            alg: EC_ALGORITHM.into(),
            x: BASE64_URL_SAFE_NO_PAD.encode(x),
            y: BASE64_URL_SAFE_NO_PAD.encode(y),
        };
        Ok(TeeKey { private, public })
    }

    /// The public half, as the attestation carries it.
    #[must_use]
    pub fn public(&self) -> &TeePubKey {
        &self.public
    }

    /// Decrypts what was encrypted to this key.
    ///
    /// # Errors
    /// See [`JweError`].
    pub fn open(self, message: Response) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let header = &message.protected;
        if header.alg != EC_ALGORITHM || header.enc != ENCRYPTION {
            return Err(JweError::Algorithm {
                found: format!("{} and {}", header.alg, header.enc),
            });
        }
        let sender = header.other_fields.get("epk").and_then(sender_key);
        let sender = UnparsedPublicKey::new(&ECDH_P256, sender.ok_or(JweError::SenderKey)?);
        let key_encryption_key = agree_ephemeral(self.private, &sender, key_encryption_key)
            .map_err(|_| JweError::SenderKey)?;
        let mut key = Zeroizing::new([0; 32]);
        if message.encrypted_key.len() != key.len() + 8 {
            return Err(JweError::Decrypt);
        }
        KwAes256::new((&*key_encryption_key).into())
            .unwrap_key(&message.encrypted_key, &mut *key)
            .map_err(|_| JweError::Decrypt)?;
        let associated = header.generate_aad().map_err(|_| JweError::Decrypt)?;
        let nonce: [u8; NONCE_LEN] = message.iv.try_into().map_err(|_| JweError::Decrypt)?;
        let mut text = Zeroizing::new(message.ciphertext);
        text.extend_from_slice(&message.tag);
        let length = UnboundKey::new(&AES_256_GCM, &*key)
            .map(LessSafeKey::new)
            .and_then(|key| {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(associated), &mut text).map(|text| text.len())
            })
            .map_err(|_| JweError::Decrypt)?;
        text.truncate(length);
        Ok(text)
    }
}

/// The public key `epk` as an uncompressed point. That it is on the curve is checked by its use.
fn sender_key(epk: &Value) -> Option<Vec<u8>> {
    let text = |name: &str| epk.get(name).and_then(Value::as_str);
    if (text("kty"), text("crv")) != (Some("EC"), Some(EC_CURVE)) {
        return None;
    }
    let mut point = vec![4];
    for name in ["x", "y"] {
        point.extend(BASE64_URL_SAFE_NO_PAD.decode(text(name)?).ok()?);
    }
    (point.len() == 65).then_some(point)
}

/// The key that encrypts the content's key, from what both parties agreed on.
#[must_use]
pub fn key_encryption_key(agreed: &[u8]) -> Zeroizing<[u8; 32]> {
    concat_kdf(agreed, EC_ALGORITHM.as_bytes(), b"", b"", 256)
}

/// One round of the Concat KDF (NIST SP 800-56A, section 5.8.1) with SHA-256, with RFC 7518's
/// (section 4.6.2) names for its inputs. `bits` is at most 256; the rest is not to be used.
fn concat_kdf(
    agreed: &[u8],
    algorithm: &[u8],
    party_u: &[u8],
    party_v: &[u8],
    bits: u32,
) -> Zeroizing<[u8; 32]> {
    let mut context = Context::new(&SHA256);
    context.update(&1_u32.to_be_bytes());
    context.update(agreed);
    for field in [algorithm, party_u, party_v] {
        // Names of algorithms and parties are shorter than 4 GiB.
        context.update(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        context.update(field);
    }
    context.update(&bits.to_be_bytes());
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(context.finish().as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7518, appendix C.
    #[test]
    fn derives_the_key_of_the_specification() {
        let agreed = [
            158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49,
            110, 163, 218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
        ];
        let key = concat_kdf(&agreed, b"A128GCM", b"Alice", b"Bob", 128);
        let expected = [86, 170, 141, 234, 248, 35, 109, 32, 92, 34, 40, 205, 113, 167, 16, 26];
        assert_eq!(key[..16], expected);
    }

    #[test]
    fn messages_that_are_none_are_errors() {
        let message = |header: &Value, encrypted_key: &str| -> Response {
            let protected = BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
            let json = serde_json::json!({
                "protected": protected, "encrypted_key": encrypted_key,
                "iv": "", "ciphertext": "", "tag": "",
            });
            serde_json::from_value(json).unwrap()
        };
        let open = |header: &Value, encrypted_key: &str| {
            TeeKey::generate().unwrap().open(message(header, encrypted_key)).unwrap_err()
        };
        let mut header = serde_json::json!({"alg": "RSA1_5", "enc": "A256GCM"});
        assert!(matches!(open(&header, ""), JweError::Algorithm { .. }));
        header["alg"] = EC_ALGORITHM.into();
        assert!(matches!(open(&header, ""), JweError::SenderKey));
        header["epk"] = serde_json::json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"});
        assert!(matches!(open(&header, ""), JweError::SenderKey));
        let other = TeeKey::generate().unwrap();
        header["epk"] = serde_json::to_value(other.public()).unwrap();
        assert!(matches!(open(&header, ""), JweError::Decrypt));
        assert!(matches!(open(&header, &"A".repeat(54)), JweError::Decrypt));
    }
}
