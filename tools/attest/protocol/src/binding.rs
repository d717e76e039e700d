//! How a nonce and a key are bound into evidence.

use std::collections::BTreeMap;

use kbs_types::{RuntimeData, TeePubKey};
use ring::digest::{SHA384, digest};
use serde_json::json;

/// The hash of the binding, as a challenge names it in its extra parameters.
pub const HASH_ALGORITHM: &str = "sha384";

/// Bytes of that hash.
pub const HASH_LEN: usize = 48;

/// REPORT_DATA for a nonce and a key: SHA-384, padded with zeros to 64 bytes, of the canonical JSON
/// (RFC 8785) of
/// `{"additional-evidence": TEXT, "nonce": TEXT, "tee-pubkey": {...}}`.
///
/// The additional evidence is the text of the attestation's field of that name; it is empty when
/// there is one processor and no device. So do version 0.4.0 of the protocol's clients
/// (guest-components, `kbs_protocol`) and servers (Trustee, `attestation-service`).
#[must_use]
pub fn report_data(runtime: &RuntimeData, additional_evidence: &str) -> [u8; 64] {
    // Texts and sorted names only: for such objects serde_json writes what RFC 8785 asks for.
    let bound = BTreeMap::from([
        ("additional-evidence", json!(additional_evidence)),
        ("nonce", json!(runtime.nonce)),
        ("tee-pubkey", json!(public_key(&runtime.tee_pubkey))),
    ]);
    let canonical = json!(bound).to_string();
    let mut data = [0; 64];
    data[..HASH_LEN].copy_from_slice(digest(&SHA384, canonical.as_bytes()).as_ref());
    data
}

/// The fields of a key as a JSON Web Key.
fn public_key(key: &TeePubKey) -> BTreeMap<&str, &str> {
    match key {
        TeePubKey::RSA { alg, k_mod, k_exp } => {
            [("alg", alg.as_str()), ("e", k_exp), ("kty", "RSA"), ("n", k_mod)].into()
        }
        TeePubKey::EC { crv, alg, x, y } => {
            [("alg", alg.as_str()), ("crv", crv), ("kty", "EC"), ("x", x), ("y", y)].into()
        }
        TeePubKey::AKP { alg, public_key } => {
            [("alg", alg.as_str()), ("kty", "AKP"), ("pub", public_key)].into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The expected values were computed with Python's `json` (sorted keys, no blanks, no escapes but
    /// those of RFC 8785) and `hashlib`.
    #[test]
    fn is_what_others_compute() {
        let ec = RuntimeData {
            nonce: "bm9uY2U=".into(),
            tee_pubkey: TeePubKey::EC {
                crv: "P-256".into(),
                alg: "ECDH-ES+A256KW".into(),
                x: "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ".into(),
                y: "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck".into(),
            },
        };
        let data = report_data(&ec, "");
        assert_eq!(
            hex(&data[..48]),
            "3945187dbb9598b90d6d12b8ef92de71d3470de892e2a2ddfef59097e5c31644\
             0e0697b70072e773109d5950646727fe"
        );
        assert_eq!(data[48..], [0; 16]);
        let rsa = RuntimeData {
            nonce: "\u{1}\"/\u{20ac}".into(),
            tee_pubkey: TeePubKey::RSA {
                alg: "RSA-OAEP-256".into(),
                k_mod: "AQAB".into(),
                k_exp: "Aw".into(),
            },
        };
        assert_eq!(
            hex(&report_data(&rsa, "{\"tpm\":\"\u{20ac}\\u0001\"}")[..48]),
            "9f3c88d27fa14ec8988c13e48497e3938fd1e245154ecf5e4b79befdc8d25492\
             971fde15a3950b3242fc99402321ed12"
        );
    }
}
