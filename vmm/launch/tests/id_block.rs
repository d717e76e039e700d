//! ID blocks against expected bytes, and their signatures against another implementation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_launch::Digest384;
use casemate_launch::snp::id_block::{IdBlockFields, KeyError, SigningKey, sign};
use casemate_test_support::vectors::{all, folder};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use serde_json::Value;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap())
}

fn key(path: &str) -> SigningKey {
    SigningKey::from_pem(&std::fs::read(folder().join(path)).unwrap()).unwrap()
}

/// A number of `bytes`, which are little endian in a field of 72.
fn big_endian(field: &[u8]) -> Vec<u8> {
    assert!(field[48..72].iter().all(|byte| *byte == 0));
    field[..48].iter().rev().copied().collect()
}

/// Whether the signature at `signature` over `message` is by the key at `key`, all within `page`.
fn verifies(page: &[u8], key: usize, signature: usize, message: &[u8]) -> bool {
    let coordinates = [big_endian(&page[key + 4..]), big_endian(&page[key + 4 + 72..])].concat();
    let point = [vec![4], coordinates].concat();
    let numbers = [big_endian(&page[signature..]), big_endian(&page[signature + 72..])].concat();
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, &numbers).is_ok()
}

#[test]
fn blocks_and_digests_are_as_expected_and_signatures_verify() {
    for vector in all("snp-id-block").unwrap() {
        let (params, expected) = (&vector["params"], &vector["expected"]);
        let id = |name| u128::from_str_radix(text(params, name), 16).unwrap().to_be_bytes();
        let fields = IdBlockFields {
            launch_digest: text(params, "launch_digest").parse().unwrap(),
            family_id: id("family_id"),
            image_id: id("image_id"),
            version: number(&params["version"]).try_into().unwrap(),
            guest_svn: number(&params["guest_svn"]).try_into().unwrap(),
            policy: number(&params["policy"]),
        };
        let (id_key, author_key) = (key(text(params, "id_key")), key(text(params, "author_key")));
        let digests = |name| text(expected, name).parse::<Digest384>().unwrap();
        assert_eq!(id_key.digest(), digests("id_key_digest"));
        assert_eq!(author_key.digest(), digests("author_key_digest"));

        let signed = sign(&fields, &id_key, Some(&author_key));
        let hex: String = signed.block.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, text(expected, "id_block"));
        let page = &signed.authentication[..];
        assert_eq!(page[..8], [1, 0, 0, 0, 1, 0, 0, 0]);
        for range in expected["id_auth_zero_ranges"].as_array().unwrap() {
            let bound = |at: usize| usize::try_from(range[at].as_u64().unwrap()).unwrap();
            assert!(page[bound(0)..bound(1)].iter().all(|byte| *byte == 0), "{range}");
        }
        assert!(verifies(page, 0x240, 0x40, &signed.block[..]), "ID block");
        assert!(verifies(page, 0x880, 0x680, &page[0x240..0x644]), "ID key");
        assert!(signed.author_key);

        let alone = sign(&fields, &id_key, None);
        let page = &alone.authentication[..];
        assert!(verifies(page, 0x240, 0x40, &alone.block[..]));
        assert!(page[4..8].iter().chain(&page[0x680..]).all(|byte| *byte == 0));
        assert!(!alone.author_key);
    }
}

#[test]
fn keys_of_other_curves_are_rejected() {
    let refused = |pem: &str| SigningKey::from_pem(pem.as_bytes()).err().unwrap();
    assert!(matches!(refused(""), KeyError::NoPem));
    assert!(matches!(refused("-----BEGIN PUBLIC KEY-----\n"), KeyError::NoPem));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n";
    assert!(matches!(refused(encrypted), KeyError::Encrypted));
    let dek = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
    assert!(matches!(refused(dek), KeyError::Encrypted));
    // openssl ecparam -name prime256v1 -genkey -noout, in both formats.
    assert!(matches!(refused(include_str!("p256-sec1.pem")), KeyError::Sec1));
    assert!(matches!(refused(include_str!("p256-pkcs8.pem")), KeyError::Pkcs8(_)));
}
