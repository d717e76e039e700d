//! Tokens: JSON web tokens signed with the broker's own key.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
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
