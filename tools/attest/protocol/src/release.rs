//! Signed releases: how a guest knows the broker that a secret comes from.
//!
//! Encryption to the guest's key keeps a secret from everybody else, but whoever answers the guest can
//! encrypt a secret of their own. A broker therefore signs each release, and the guest's measured part
//! pins the broker's key.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::command_line::parameters;

/// The HTTP header of a release that carries its signature, in URL-safe base64.
pub const SIGNATURE_HEADER: &str = "Casemate-Release-Signature";
/// The kernel parameter that pins a broker key. It may occur more than once: each key is good.
pub const BROKER_KEY_PARAMETER: &str = "casemate.broker_key";

/// Text before the key, which names its kind.
const KIND: &str = "ed25519:";
/// First bytes of each signed message. The same key signs nothing else.
const CONTEXT: &[u8] = b"casemate-broker release\n";

/// The public half of a broker's key for releases: Ed25519 (RFC 8032). As text `ed25519:` and 43
/// characters of URL-safe base64, which fits into a kernel command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BrokerKey([u8; 32]);

/// Not a broker key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a broker key: expected \"{KIND}\" and 43 characters, as casemate broker release-key prints them"
)]
pub struct BrokerKeyError;

impl BrokerKey {
    /// The key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        BrokerKey(bytes)
    }

    /// Whether `signature`, the text of [`SIGNATURE_HEADER`], is this key's over the release of `id`
    /// with the body `body` to the guest whose evidence is over `report_data`.
    #[must_use]
    pub fn signed(&self, signature: &str, report_data: &[u8; 64], id: &str, body: &[u8]) -> bool {
        let Ok(signature) = BASE64_URL_SAFE_NO_PAD.decode(signature) else { return false };
        let message = release_message(report_data, id, body);
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&message, &signature).is_ok()
    }
}

impl FromStr for BrokerKey {
    type Err = BrokerKeyError;

    fn from_str(text: &str) -> Result<Self, BrokerKeyError> {
        let key = text.strip_prefix(KIND).ok_or(BrokerKeyError)?;
        let key = BASE64_URL_SAFE_NO_PAD.decode(key).map_err(|_| BrokerKeyError)?;
        key.try_into().map(BrokerKey).map_err(|_| BrokerKeyError)
    }
}

impl fmt::Display for BrokerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{KIND}{}", BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The bytes that a broker signs: a context, the session's binding of nonce and guest's key, the
/// secret's identifier with a line feed (which no identifier contains), and the body as it is sent.
///
/// A release that was signed for another session, guest or secret is therefore another message.
#[must_use]
pub fn release_message(report_data: &[u8; 64], id: &str, body: &[u8]) -> Vec<u8> {
    [CONTEXT, report_data, id.as_bytes(), b"\n", body].concat()
}

/// The broker keys that a kernel command line pins.
///
/// # Errors
/// A value of [`BROKER_KEY_PARAMETER`] is not a key.
pub fn pinned_keys(command_line: &str) -> Result<Vec<BrokerKey>, BrokerKeyError> {
    parameters(command_line)
        .filter(|(name, _)| *name == BROKER_KEY_PARAMETER)
        .map(|(_, value)| value.unwrap_or_default().parse())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    fn pair() -> (Ed25519KeyPair, BrokerKey) {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let public = BrokerKey::new(pair.public_key().as_ref().try_into().unwrap());
        (pair, public)
    }

    fn sign(pair: &Ed25519KeyPair, report_data: &[u8; 64], id: &str, body: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(pair.sign(&release_message(report_data, id, body)))
    }

    #[test]
    fn a_signature_is_good_for_one_release_to_one_guest() {
        let ((pair, key), (_, other)) = (pair(), pair());
        let (data, id, body) = ([7; 64], "a/b/c", b"{\"ciphertext\":1}");
        let signature = sign(&pair, &data, id, body);
        assert!(key.signed(&signature, &data, id, body));
        assert!(!other.signed(&signature, &data, id, body));
        assert!(!key.signed(&signature, &[8; 64], id, body));
        assert!(!key.signed(&signature, &data, "a/b/d", body));
        assert!(!key.signed(&signature, &data, id, b"{\"ciphertext\":2}"));
        for text in ["", "AA", &signature[1..], &format!("{signature}=")] {
            assert!(!key.signed(text, &data, id, body), "{text}");
        }
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_pinned_by_a_command_line() {
        let (one, other) = (pair().1, pair().1);
        assert_eq!(one.to_string().parse(), Ok(one));
        let line =
            format!("quiet casemate.broker_key={one} a=b casemate.broker_key=\"{other}\" -- x");
        assert_eq!(pinned_keys(&line), Ok(vec![one, other]));
        assert_eq!(pinned_keys("quiet casemate.broker_keys=x xcasemate.broker_key=x"), Ok(vec![]));
        let text = one.to_string();
        let bare = text.trim_start_matches(KIND);
        for key in
            ["", KIND, bare, &text[..text.len() - 1], &format!("{text}A"), &format!("p256:{bare}")]
        {
            assert_eq!(
                pinned_keys(&format!("casemate.broker_key={key}")),
                Err(BrokerKeyError),
                "{key}"
            );
        }
        assert_eq!(pinned_keys("casemate.broker_key"), Err(BrokerKeyError));
    }

    proptest! {
        /// One other bit anywhere, or a border between the fields elsewhere, is another message.
        #[test]
        fn no_two_releases_have_the_same_message(
            data in proptest::array::uniform32(any::<u8>()),
            id in "[a-z]{1,5}/[a-z]{1,5}/[a-z]{1,5}",
            body in "[ -~]{0,40}",
            other_data in proptest::array::uniform32(any::<u8>()),
            other_id in "[a-z]{1,5}/[a-z]{1,5}/[a-z]{1,5}",
            other_body in "[ -~]{0,40}",
        ) {
            let wide = |half: [u8; 32]| {
                let mut data = [0; 64];
                data[..32].copy_from_slice(&half);
                data
            };
            let one = release_message(&wide(data), &id, body.as_bytes());
            let other = release_message(&wide(other_data), &other_id, other_body.as_bytes());
            let same = (data, &id, &body) == (other_data, &other_id, &other_body);
            prop_assert_eq!(one == other, same);
            // What follows an identifier is not another identifier with a shorter body.
            let longer = release_message(&wide(data), &format!("{id}{body}"), b"");
            prop_assert_eq!(one == longer, body.is_empty());
        }
    }
}
