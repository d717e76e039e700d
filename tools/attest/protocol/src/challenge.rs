//! Evidence over a challenge that does not come from a broker.
//!
//! The agent never makes evidence over bytes that somebody else chose: a host could choose the
//! [binding](crate::report_data) of a broker's nonce and a key of its own, and receive the secret. Each
//! command of the agent that answers a challenge hashes it behind a prefix of its own instead.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA512};

/// The commands of the agent that answer a challenge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Challenger {
    /// `casemate-agent check`: the VMM chooses the challenge.
    Check,
    /// `casemate-agent report`: the caller in the guest chooses it.
    Report,
}

impl Challenger {
    /// All commands that answer a challenge.
    pub const ALL: [Self; 2] = [Self::Check, Self::Report];

    /// Bytes before the challenge. No prefix begins another one.
    #[must_use]
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Self::Check => b"casemate-agent check\n",
            Self::Report => b"casemate-agent report\n",
        }
    }
}

/// REPORT_DATA of the evidence with which the agent answers a challenge: SHA-512 of the command's
/// prefix and the challenge.
///
/// A broker's binding is SHA-384 of JSON, padded with 16 zero bytes. This hash has no padding, so that
/// whoever wants one to equal the other has to find a preimage of 512 bits.
#[must_use]
pub fn challenge_data(challenger: Challenger, challenge: &[u8]) -> [u8; 64] {
    let mut context = Context::new(&SHA512);
    context.update(challenger.prefix());
    context.update(challenge);
    let mut data = [0; 64];
    data.copy_from_slice(context.finish().as_ref());
    data
}

/// A challenge for `casemate-agent report`: 1 to 64 bytes, as text hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nonce(Vec<u8>);

/// Not a nonce.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 64 bytes as hexadecimal digits, two per byte")]
pub struct NonceError;

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, NonceError> {
        let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
        let digits = digits.ok_or(NonceError)?;
        if digits.is_empty() || digits.len() > 128 || !digits.len().is_multiple_of(2) {
            return Err(NonceError);
        }
        let byte = |pair: &[u32]| {
            let value = pair.iter().fold(0, |value, digit| value * 16 + digit);
            u8::try_from(value).map_err(|_| NonceError)
        };
        digits.chunks(2).map(byte).collect::<Result<_, _>>().map(Nonce)
    }
}

impl AsRef<[u8]> for Nonce {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use kbs_types::{RuntimeData, TeePubKey};
    use proptest::prelude::*;

    use super::*;
    use crate::report_data;

    /// The expected values are those of `{ printf 'casemate-agent report\n'; printf '\0\021\042\063'; } |
    /// sha512sum` and of Python's `hashlib`.
    #[test]
    fn challenge_data_matches_sha512sum() {
        let hex = |data: [u8; 64]| data.map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(
            hex(challenge_data(Challenger::Report, &[0x00, 0x11, 0x22, 0x33])),
            "c80a12460cbdc4c4bd1dc1f9271c6665320f4b42603ac4005bb3e938d6eb5696\
             04c59b71945de8f3849fee6289d5bb398d50dc1d491d21ae5b877366bcece5d6"
        );
        assert_eq!(
            hex(challenge_data(Challenger::Check, &[0x5a; 64])),
            "a706f30763065fbf4c3bace2ea8b9704c786cf18af0e5bc49c6267c4664734b4\
             8fc03766e6556151a0b24954f3df4b2b9a4cfd467b41e183f80418782babdca3"
        );
    }

    #[test]
    fn a_nonce_has_whole_bytes() {
        assert_eq!("0aF0".parse::<Nonce>().unwrap().as_ref(), [0x0a, 0xf0]);
        assert_eq!("0aF0".parse::<Nonce>().unwrap().to_string(), "0af0");
        assert!("0".repeat(128).parse::<Nonce>().is_ok());
        for text in ["", "0", "xx", "0 ", "\u{ff10}0", &"0".repeat(130)] {
            assert!(text.parse::<Nonce>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever a host sends, the answer is not a broker's binding: neither of the nonce and key
        /// that it has in mind, nor of any other, as bindings end with zeros.
        #[test]
        fn answers_to_challenges_are_not_bindings(
            nonce in "[A-Za-z0-9+/=]{0,64}",
            x in "[A-Za-z0-9_-]{43}",
            y in "[A-Za-z0-9_-]{43}",
            additional in "[ -~]{0,40}",
            other in proptest::collection::vec(any::<u8>(), 0..=64),
        ) {
            let key = TeePubKey::EC {
                crv: "P-256".into(), alg: "ECDH-ES+A256KW".into(), x, y,
            };
            let runtime = RuntimeData { nonce, tee_pubkey: key };
            let binding = report_data(&runtime, &additional);
            prop_assert_eq!(&binding[48..], [0; 16]);
            for challenger in Challenger::ALL {
                for challenge in [&binding[..], &binding[..48], &other] {
                    let data = challenge_data(challenger, challenge);
                    prop_assert_ne!(data, binding);
                    prop_assert_ne!(&data[48..], [0; 16]);
                }
            }
        }

        /// One command's answer is not another's, whatever either of them is sent.
        #[test]
        fn commands_do_not_answer_for_each_other(
            one in proptest::collection::vec(any::<u8>(), 0..=64),
            other in proptest::collection::vec(any::<u8>(), 0..=64),
        ) {
            prop_assert_ne!(
                challenge_data(Challenger::Check, &one),
                challenge_data(Challenger::Report, &other)
            );
        }
    }
}
