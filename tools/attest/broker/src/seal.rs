//! Encryption at rest: AES-256-GCM under one key, a random nonce per item.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::audit::AuditKey;

/// The key of a store: 32 bytes, as text 64 hexadecimal digits.
pub struct StoreKey(Zeroizing<[u8; 32]>);

/// Not a key, or none could be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is something else. It is not repeated: it may be most of a key.
    #[error("a store's key is 64 hexadecimal digits, this is something else")]
    Text,
    /// The system has no randomness.
    #[error("the system gave no random bytes for a key")]
    Random,
}

impl StoreKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        random().map(StoreKey).ok_or(KeyError::Random)
    }

    /// Reads 64 hexadecimal digits; blanks and line ends around them do not count.
    ///
    /// # Errors
    /// [`KeyError::Text`].
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let digits = text.trim_ascii();
        let mut key = Zeroizing::new([0; 32]);
        if digits.len() != 2 * key.len() {
            return Err(KeyError::Text);
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let mut value = 0_u32;
            for digit in pair {
                let digit = char::from(*digit).to_digit(16).ok_or(KeyError::Text)?;
                value = value * 16 + digit;
            }
            *byte = u8::try_from(value).map_err(|_| KeyError::Text)?;
        }
        Ok(StoreKey(key))
    }

    /// The key as text.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&*self.0))
    }

    /// The key of the store's audit log. It says nothing about this one.
    pub(crate) fn audit_key(&self) -> AuditKey {
        let own = hmac::Key::new(hmac::HMAC_SHA384, &*self.0);
        AuditKey::new(hmac::sign(&own, b"casemate audit log 1").as_ref())
    }

    /// Encrypts `plain`, bound to `context`: it opens only as what it was sealed as.
    pub(crate) fn seal(&self, context: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let nonce: Zeroizing<[u8; NONCE_LEN]> = random()?;
        let mut sealed = nonce.to_vec();
        let mut text = Zeroizing::new(plain.to_vec());
        let tag = self
            .cipher()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context),
                &mut text,
            )
            .ok()?;
        sealed.extend_from_slice(&text);
        sealed.extend_from_slice(tag.as_ref());
        Some(sealed)
    }

    /// Decrypts what [`StoreKey::seal`] made; `None` when the key or the context is another one, or
    /// a byte was changed.
    pub(crate) fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.cipher()?.open_in_place(nonce, Aad::from(context), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &*self.0).ok().map(LessSafeKey::new)
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StoreKey")
    }
}

/// Random bytes; `None` when the system has none.
pub(crate) fn random<const N: usize>() -> Option<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new().fill(&mut *bytes).ok()?;
    Some(bytes)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_what_was_sealed_with_this_key_as_this() {
        let key = StoreKey::generate().unwrap();
        let sealed = key.seal(b"a", b"plain").unwrap();
        assert_eq!(key.open(b"a", &sealed).unwrap().as_slice(), b"plain");
        assert!(key.open(b"b", &sealed).is_none());
        assert!(StoreKey::generate().unwrap().open(b"a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(b"a", &changed).is_none(), "{at}");
            assert!(key.open(b"a", &sealed[..at]).is_none(), "{at}");
        }
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let key = StoreKey::generate().unwrap();
        let text = key.to_text();
        let again = StoreKey::parse(format!("{}\n", *text).as_bytes()).unwrap();
        assert_eq!(*again.to_text(), *text);
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"x".repeat(64)] {
            assert!(StoreKey::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
