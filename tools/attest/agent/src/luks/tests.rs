use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const SIZE_OF_COPY: usize = 0x4000;
const SLOTS: usize = 0x8_0000;

/// The JSON of a volume as cryptsetup 2.6 makes it, with short key slots.
fn metadata() -> Value {
    json!({
        "keyslots": {"0": {
            "type": "luks2", "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw", "offset": "32768", "size": "258048",
                "encryption": "aes-xts-plain64", "key_size": 64
            },
            "kdf": {"type": "argon2id", "time": 4, "memory": 1_048_576, "cpus": 4, "salt": "c2FsdA=="}
        }},
        "tokens": {},
        "segments": {"0": {
            "type": "crypt", "offset": "16777216", "size": "dynamic", "iv_tweak": "0",
            "encryption": "aes-xts-plain64", "sector_size": 4096
        }},
        "digests": {"0": {
            "type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256",
            "iterations": 1000, "salt": "c2FsdA==", "digest": "ZGlnZXN0"
        }},
        "config": {"json_size": "12288", "keyslots_size": SLOTS.to_string()}
    })
}

/// The first copy of a header with this JSON.
fn copy(json: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE_OF_COPY];
    bytes[MAGIC].copy_from_slice(FIRST_MAGIC);
    bytes[VERSION].copy_from_slice(&[0, 2]);
    bytes[SIZE].copy_from_slice(&to_u64(SIZE_OF_COPY).to_be_bytes());
    bytes[CHECKSUM_ALGORITHM].copy_from_slice(&padded(b"sha256"));
    bytes[BINARY..][..json.len()].copy_from_slice(json);
    seal(&mut bytes);
    bytes
}

fn seal(copy: &mut [u8]) {
    let sum = checksum(copy);
    copy[CHECKSUM][..32].copy_from_slice(sum.as_ref());
}

/// A volume that begins with this copy; the rest is not zero.
fn volume(copy: &[u8]) -> Vec<u8> {
    [copy, &vec![0xa5; SIZE_OF_COPY + SLOTS + 4096]].concat()
}

fn read(bytes: &[u8]) -> Result<LuksHeader, LuksError> {
    LuksHeader::read(&mut &bytes[..])
}

fn read_json(json: &str) -> Result<LuksHeader, LuksError> {
    read(&volume(&copy(json.as_bytes())))
}

/// The first refused header's reason, with all causes.
fn refusal(json: &str) -> String {
    let error = read_json(json).unwrap_err();
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn both_copies_are_the_checked_one_and_the_key_slots_follow() {
    let first = copy(metadata().to_string().as_bytes());
    let volume = volume(&first);
    let header = read(&volume).unwrap();
    let bytes = header.as_bytes();
    assert_eq!(bytes.len(), 2 * SIZE_OF_COPY + SLOTS);
    assert_eq!(bytes[..SIZE_OF_COPY], first);
    let second = &bytes[SIZE_OF_COPY..][..SIZE_OF_COPY];
    assert_eq!(&second[MAGIC], SECOND_MAGIC);
    assert_eq!(second[OFFSET], to_u64(SIZE_OF_COPY).to_be_bytes());
    assert_eq!(second[BINARY..], first[BINARY..]);
    assert_eq!(checksum(second).as_ref(), &second[CHECKSUM][..32]);
    assert_eq!(bytes[2 * SIZE_OF_COPY..], volume[2 * SIZE_OF_COPY..][..SLOTS]);
}

#[test]
fn the_memory_file_has_the_header_and_cannot_be_changed() {
    use std::os::unix::fs::FileExt as _;
    let header = read_json(&metadata().to_string()).unwrap();
    let file = header.to_memory_file().unwrap();
    let mut bytes = vec![0; header.as_bytes().len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, header.as_bytes());
    assert!(file.write_at(&[0], 0).is_err());
    assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err());
}

#[test]
fn a_part_that_is_not_known_is_refused() {
    for (pointer, value, reason) in [
        ("/keyslots/0/area/encryption", json!("cipher_null-ecb"), "a key slot's cipher"),
        ("/keyslots/0/area/encryption", json!("aes-xts-plain64\0"), "a key slot's cipher"),
        ("/segments/0/encryption", json!("cipher_null-ecb"), "the segment's cipher"),
        ("/segments/0/encryption", json!("null"), "the segment's cipher"),
        ("/segments/0/encryption", json!("aes-cbc-essiv:sha256"), "the segment's cipher"),
        ("/segments/0/encryption", json!("aes-gcm-random"), "the segment's cipher"),
        ("/segments/0/type", json!("linear"), "the segment's type"),
        ("/segments/0/offset", json!("0"), "the segment's offset"),
        ("/segments/0/offset", json!("16777217"), "the segment's offset"),
        ("/segments/0/offset", json!("-1"), "JSON"),
        ("/segments/0/offset", json!("+16777216"), "JSON"),
        ("/segments/0/offset", json!(16_777_216), "JSON"),
        ("/segments/0/size", json!("0"), "the segment's size"),
        ("/segments/0/size", json!("18446744073709547520"), "the segment's size"),
        ("/segments/0/iv_tweak", json!("1"), "the segment's IV tweak"),
        ("/segments/0/sector_size", json!(3), "the segment's sector size"),
        ("/segments/0/flags", json!(["backup-final"]), "JSON"),
        ("/segments/1", metadata()["segments"]["0"].clone(), "the number of segments"),
        ("/segments", json!({"1": metadata()["segments"]["0"]}), "the number of segments"),
        ("/segments", json!({}), "the number of segments"),
        ("/tokens/0", json!({"type": "systemd-tpm2", "keyslots": ["0"]}), "the number of tokens"),
        ("/keyslots", json!({}), "the number of key slots"),
        ("/keyslots/32", metadata()["keyslots"]["0"].clone(), "JSON"),
        ("/keyslots/00", metadata()["keyslots"]["0"].clone(), "JSON"),
        ("/keyslots/0/type", json!("reencrypt"), "a key slot's type"),
        ("/keyslots/0/key_size", json!(1), "a key slot's key size"),
        ("/keyslots/0/key_size", json!(128), "a key slot's size"),
        ("/keyslots/0/af/type", json!("none"), "a key slot's splitter"),
        ("/keyslots/0/af/stripes", json!(1), "a key slot's stripes"),
        ("/keyslots/0/af/hash", json!("crc32"), "a key slot's splitter's hash"),
        ("/keyslots/0/area/type", json!("datashift"), "a key slot's area"),
        ("/keyslots/0/area/key_size", json!(0), "a key slot's cipher's key size"),
        ("/keyslots/0/area/offset", json!("0"), "a key slot's offset"),
        ("/keyslots/0/area/size", json!("255999"), "a key slot's size"),
        ("/keyslots/0/area/size", json!("1048576"), "a key slot's size"),
        ("/keyslots/0/area/size", json!("18446744073709551615"), "a key slot's size"),
        ("/keyslots/0/kdf/type", json!("null"), "a key slot's KDF"),
        ("/keyslots/0/kdf/type", json!("pbkdf2"), "a key slot's KDF"),
        ("/keyslots/0/kdf/time", json!(0), "Argon2 time"),
        ("/keyslots/0/kdf/memory", json!(1_u64 << 40), "Argon2 memory"),
        ("/keyslots/0/kdf/cpus", json!(1000), "Argon2 threads"),
        ("/digests", json!({}), "the number of digests"),
        ("/digests/0/type", json!("none"), "the digest's type"),
        ("/digests/0/hash", json!("md5"), "the digest's hash"),
        ("/digests/0/segments", json!([]), "the digest's segments"),
        ("/config/json_size", json!("12287"), "config.json_size"),
        ("/config/keyslots_size", json!("4294967296"), "config.keyslots_size"),
        ("/config/keyslots_size", json!("1"), "config.keyslots_size"),
        ("/config/requirements", json!({"mandatory": ["online-reencrypt"]}), "requirements"),
        ("/config/requirements", json!({"other": []}), "JSON"),
        ("/other", json!({}), "JSON"),
    ] {
        let mut json = metadata();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[name] = value.clone();
        let refused = refusal(&json.to_string());
        assert!(refused.contains(reason), "{pointer} = {value}: {refused}");
    }
}

#[test]
fn other_volumes_that_cryptsetup_makes_are_accepted() {
    let integrity = |kind: &str| json!({"type": kind, "journal_encryption": "none", "journal_integrity": "none"});
    let kdf = json!({"type": "pbkdf2", "hash": "sha512", "iterations": 1000, "salt": "c2FsdA=="});
    let changes: [&[(&str, Value)]; 7] = [
        &[("/segments/0/size", json!("4096"))],
        &[("/keyslots/0/kdf", kdf), ("/keyslots/0/priority", json!(2))],
        &[
            ("/segments/0/encryption", json!("aes-gcm-random")),
            ("/segments/0/integrity", integrity("aead")),
        ],
        &[
            ("/segments/0/encryption", json!("aes-xts-random")),
            ("/segments/0/integrity", integrity("hmac(sha256)")),
        ],
        &[
            ("/config/flags", json!(["allow-discards"])),
            ("/config/requirements", json!({"mandatory": []})),
        ],
        &[
            ("/segments/0/encryption", json!("aes-xts-plain64")),
            (
                "/segments/0/integrity",
                json!({
                    "type": "hmac(sha512)", "journal_encryption": "none", "journal_integrity": "none", "key_size": 64
                }),
            ),
        ],
        &[("/keyslots/31", metadata()["keyslots"]["0"].clone())],
    ];
    for change in changes {
        let mut json = metadata();
        for (pointer, value) in change {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[name] = value.clone();
        }
        read_json(&json.to_string()).unwrap();
    }
}

#[test]
fn what_is_there_twice_is_refused() {
    let json = metadata().to_string();
    let null = "\"encryption\":\"cipher_null-ecb\",\"encryption\":";
    assert!(refusal(&json.replacen("\"encryption\":", null, 1)).contains("JSON"));
    let slots = format!("\"keyslots\":{{\"0\":{},\"0\":", metadata()["keyslots"]["0"]);
    assert!(refusal(&json.replacen("\"keyslots\":{\"0\":", &slots, 1)).contains("JSON"));
    let config = format!("{{\"config\":{},", metadata()["config"]);
    assert!(refusal(&json.replacen('{', &config, 1)).contains("JSON"));
    // The same name in other characters is the same name.
    let escaped = null.replacen("encryption", "encrypt\\u0069on", 1);
    assert!(refusal(&json.replacen("\"encryption\":", &escaped, 1)).contains("JSON"));
}

#[test]
fn binary_headers_that_differ_are_refused() {
    let good = copy(metadata().to_string().as_bytes());
    let changed = |range: std::ops::Range<usize>, value: &[u8]| {
        let mut copy = good.clone();
        copy[range].copy_from_slice(value);
        seal(&mut copy);
        read(&volume(&copy)).unwrap_err()
    };
    assert!(matches!(changed(MAGIC, SECOND_MAGIC), LuksError::Format));
    assert!(matches!(changed(VERSION, &[0, 1]), LuksError::Format));
    assert!(matches!(changed(SIZE, &[0xff; 8]), LuksError::Binary(_)));
    assert!(matches!(changed(SIZE, &0x8000_u64.to_be_bytes()), LuksError::Checksum));
    assert!(matches!(changed(OFFSET, &0x4000_u64.to_be_bytes()), LuksError::Binary(_)));
    assert!(matches!(changed(CHECKSUM_ALGORITHM, &padded(b"crc32")), LuksError::Binary(_)));
    let mut long = good.clone();
    long[CHECKSUM.end - 1] = 1;
    assert!(matches!(read(&volume(&long)), Err(LuksError::Binary(_))));
    let mut unsealed = good.clone();
    unsealed[SIZE_OF_COPY - 1] = 1;
    assert!(matches!(read(&volume(&unsealed)), Err(LuksError::Checksum)));
    seal(&mut unsealed);
    assert!(matches!(read(&volume(&unsealed)), Err(LuksError::Metadata(MetadataError::Padding))));
    for length in [0, 6, BINARY, SIZE_OF_COPY, 2 * SIZE_OF_COPY, 2 * SIZE_OF_COPY + SLOTS - 1] {
        assert!(matches!(read(&volume(&good)[..length]), Err(LuksError::Read(_))), "{length}");
    }
}

#[test]
fn text_of_the_disk_is_escaped_and_cut() {
    let mut json = metadata();
    json["segments"]["0"]["type"] = format!("\u{1b}[2Jaccept{}", "x".repeat(1000)).into();
    let text = refusal(&json.to_string());
    assert!(!text.contains('\u{1b}') && text.len() < 300, "{text}");
}

proptest! {
    /// Without the checksum's maker, no changed bit of the checked copy gets through.
    #[test]
    fn no_flipped_bit_is_accepted(at in 0..SIZE_OF_COPY * 8) {
        // Salt, UUID and labels: covered by the checksum alone.
        let mut changed = copy(metadata().to_string().as_bytes());
        changed[at / 8] ^= 1 << (at % 8);
        prop_assert!(read(&volume(&changed)).is_err());
    }

    /// Whatever the JSON says, an accepted header has no null cipher, and ends where it should.
    #[test]
    fn changed_json_is_refused_or_harmless(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), "[ -~]{0,6}", 0_usize..8), 1..4),
    ) {
        let mut json = metadata().to_string();
        for (at, text, cut) in edits {
            let at = at.index(json.len());
            let end = (at + cut).min(json.len());
            json.replace_range(at..end, &text);
        }
        if let Ok(header) = read_json(&json) {
            prop_assert!(!json.contains("null"), "{}", json);
            prop_assert!(header.as_bytes().len() <= MAX_HEADER);
            prop_assert_eq!(read(header.as_bytes()).unwrap(), header);
        }
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        let _ = read(&bytes);
        let mut begun = bytes;
        begun.splice(..begun.len().min(8), [FIRST_MAGIC, &[0, 2]].concat());
        let _ = read(&begun);
    }
}
