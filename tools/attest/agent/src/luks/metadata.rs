//! The JSON of a LUKS2 header.
//!
//! Everything that this reader does not know is refused: a field that it would pass over could be one
//! by which `cryptsetup` opens another volume.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::MAX_HEADER;

/// Ciphers of the volume, with the integrity that goes with each: XTS of AES alone or with an HMAC, or an
/// AEAD.
const CIPHERS: [(&str, Option<&str>); 7] = [
    ("aes-xts-plain64", None),
    ("aes-xts-plain64", Some("hmac(sha256)")),
    ("aes-xts-plain64", Some("hmac(sha512)")),
    ("aes-xts-random", Some("hmac(sha256)")),
    ("aes-xts-random", Some("hmac(sha512)")),
    ("aes-gcm-random", Some("aead")),
    ("chacha20-random", Some("poly1305")),
];
/// The cipher of key slots.
const SLOT_CIPHER: &str = "aes-xts-plain64";
const HASHES: [&str; 2] = ["sha256", "sha512"];
/// Bytes of a volume key: of AES-128 to XTS-AES-256 with an HMAC key of 64 bytes.
const KEY_BYTES: std::ops::RangeInclusive<u64> = 16..=128;
/// Bytes of a key slot's key: XTS of AES-128 and of AES-256.
const SLOT_KEY_BYTES: [u64; 2] = [32, 64];
/// Stripes of the anti-forensic splitter; the specification fixes them.
const STRIPES: u64 = 4000;
/// The most that Argon2 may take: KiB of memory, passes, threads.
const ARGON_MEMORY: u64 = 4 << 20;
const ARGON_TIME: u64 = 1 << 16;
const ARGON_CPUS: u64 = 16;
/// The most key slots (specification, "Keyslots Object").
const MAX_OBJECTS: u8 = 32;

/// Metadata that is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Not the JSON that it should be.
    #[error("its JSON cannot be read")]
    Json(#[from] serde_json::Error),
    /// Bytes that are neither JSON nor padding.
    #[error("its JSON is not followed by zeros")]
    Padding,
    /// A part that this reader does not accept.
    #[error("{part} is {found}: {expected}")]
    Part {
        /// The part.
        part: &'static str,
        /// Its value, with special characters escaped.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    keyslots: Objects<Slot>,
    tokens: Objects<serde::de::IgnoredAny>,
    segments: Objects<Segment>,
    digests: Objects<Digest>,
    config: Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    r#type: String,
    key_size: u64,
    af: Splitter,
    area: Area,
    kdf: Kdf,
    /// 0 to 2; which slot is tried first.
    #[serde(default, rename = "priority")]
    _priority: Option<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Splitter {
    r#type: String,
    stripes: u64,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: Number,
    size: Number,
    encryption: String,
    key_size: u64,
}

/// PBKDF2 has hash and iterations, Argon2 the rest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    r#type: String,
    #[serde(rename = "salt")]
    _salt: String,
    hash: Option<String>,
    iterations: Option<u32>,
    time: Option<u64>,
    memory: Option<u64>,
    cpus: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: Number,
    iv_tweak: Number,
    size: Size,
    encryption: String,
    sector_size: u64,
    integrity: Option<Integrity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Integrity {
    r#type: String,
    journal_encryption: String,
    journal_integrity: String,
    /// Bytes of the HMAC's key, where it is not the hash's length (cryptsetup 2.8).
    key_size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Digest {
    r#type: String,
    #[serde(rename = "keyslots")]
    _keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    #[serde(rename = "iterations")]
    _iterations: u32,
    #[serde(rename = "salt")]
    _salt: String,
    #[serde(rename = "digest")]
    _digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    json_size: Number,
    keyslots_size: Number,
    /// Of no weight: discards and the like.
    #[serde(default, rename = "flags")]
    _flags: Vec<String>,
    #[serde(default)]
    requirements: Requirements,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

/// A number as a text of digits, as 64-bit numbers are written there.
#[derive(Clone, Copy)]
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.map(Number).ok_or_else(|| D::Error::custom("a text is not a number of 64 bits"))
    }
}

enum Size {
    /// Up to the device's end.
    Dynamic,
    Bytes(u64),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = serde_json::Value::deserialize(deserializer)?;
        if text == "dynamic" {
            return Ok(Size::Dynamic);
        }
        Number::deserialize(text).map(|Number(bytes)| Size::Bytes(bytes)).map_err(D::Error::custom)
    }
}

/// Objects by number. A number that occurs twice is an error: readers do not agree on which one counts.
struct Objects<T>(BTreeMap<u8, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbered<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Numbered<T> {
            type Value = Objects<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("objects by number")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut objects = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let number = name
                        .parse()
                        .ok()
                        .filter(|number: &u8| *number < MAX_OBJECTS && number.to_string() == name);
                    let number = number
                        .ok_or_else(|| A::Error::custom("an object's name is not 0 to 31"))?;
                    if objects.insert(number, map.next_value()?).is_some() {
                        return Err(A::Error::custom("a number occurs twice"));
                    }
                }
                Ok(Objects(objects))
            }
        }
        deserializer.deserialize_map(Numbered(std::marker::PhantomData))
    }
}

/// Checks the JSON area of a header of `size` bytes. Returns where the header with its key slots ends,
/// in bytes from the volume's start.
pub(super) fn check(area: &[u8], size: usize) -> Result<usize, MetadataError> {
    let length = area.iter().position(|byte| *byte == 0).unwrap_or(area.len());
    let (json, padding) = area.split_at(length);
    if padding.is_empty() || padding.iter().any(|byte| *byte != 0) {
        return Err(MetadataError::Padding);
    }
    let metadata: Metadata = serde_json::from_slice(json)?;
    let end = metadata.config.check(area.len(), size)?;
    accept("the number of tokens", metadata.tokens.0.len(), |number| *number == 0, "remove them")?;
    accept(
        "the number of key slots",
        metadata.keyslots.0.len(),
        |number| *number > 0,
        "add one with cryptsetup luksAddKey",
    )?;
    let slots = to_u64(2 * size)..to_u64(end);
    metadata.keyslots.0.values().try_for_each(|slot| slot.check(&slots))?;
    let segments: Vec<_> = metadata.segments.0.iter().collect();
    let [(0, segment)] = segments.as_slice() else {
        let number = metadata.segments.0.len();
        return Err(part("the number of segments", &number, "one is accepted, with the number 0"));
    };
    segment.check(slots.end)?;
    let digests: Vec<_> = metadata.digests.0.values().collect();
    let [digest] = digests.as_slice() else {
        return Err(part("the number of digests", &digests.len(), "one is accepted"));
    };
    digest.check()?;
    Ok(end)
}

impl Config {
    /// Where the key slots end.
    fn check(&self, area: usize, size: usize) -> Result<usize, MetadataError> {
        let is_area = |bytes: &u64| *bytes == to_u64(area);
        accept("config.json_size", self.json_size.0, is_area, "the header has another size")?;
        let most = to_u64(MAX_HEADER - 2 * size);
        let fits = |bytes: &u64| *bytes <= most && bytes.is_multiple_of(4096);
        let expected = "whole blocks of 4096 bytes are accepted, 32 MiB with the header";
        accept("config.keyslots_size", self.keyslots_size.0, fits, expected)?;
        let mandatory = self.requirements.mandatory.len();
        let finished = "finish what was begun, such as cryptsetup reencrypt";
        accept("the number of requirements", mandatory, |number| *number == 0, finished)?;
        // At most MAX_HEADER.
        Ok(2 * size + usize::try_from(self.keyslots_size.0).unwrap_or(MAX_HEADER))
    }
}

impl Slot {
    fn check(&self, slots: &std::ops::Range<u64>) -> Result<(), MetadataError> {
        text("a key slot's type", &self.r#type, &["luks2"])?;
        let in_range = "16 to 128 bytes are accepted";
        accept("a key slot's key size", self.key_size, |size| KEY_BYTES.contains(size), in_range)?;
        let Splitter { r#type, stripes, hash } = &self.af;
        text("a key slot's splitter", r#type, &["luks1"])?;
        accept(
            "a key slot's stripes",
            *stripes,
            |stripes| *stripes == STRIPES,
            "4000 are accepted",
        )?;
        text("a key slot's splitter's hash", hash, &HASHES)?;
        self.area.check(slots, self.key_size * STRIPES)?;
        self.kdf.check()
    }
}

impl Area {
    fn check(&self, slots: &std::ops::Range<u64>, least: u64) -> Result<(), MetadataError> {
        text("a key slot's area", &self.r#type, &["raw"])?;
        text("a key slot's cipher", &self.encryption, &[SLOT_CIPHER])?;
        let key = |size: &u64| SLOT_KEY_BYTES.contains(size);
        accept(
            "a key slot's cipher's key size",
            self.key_size,
            key,
            "32 or 64 bytes are accepted",
        )?;
        let (Number(offset), Number(size)) = (self.offset, self.size);
        let begins = |offset: &u64| *offset >= slots.start && offset.is_multiple_of(4096);
        accept("a key slot's offset", offset, begins, "it is not among the key slots")?;
        let ends = |size: &u64| {
            *size >= least && offset.checked_add(*size).is_some_and(|end| end <= slots.end)
        };
        accept("a key slot's size", size, ends, "it does not hold the key or leaves the key slots")
    }
}

impl Kdf {
    fn check(&self) -> Result<(), MetadataError> {
        let Kdf { r#type, hash, iterations, time, memory, cpus, .. } = self;
        match (r#type.as_str(), hash, iterations, time, memory, cpus) {
            ("pbkdf2", Some(hash), Some(1..), None, None, None) => {
                text("a key slot's PBKDF2's hash", hash, &HASHES)
            }
            ("argon2i" | "argon2id", None, None, Some(time), Some(memory), Some(cpus)) => {
                let cost = "at least 1 is accepted, and no more than can be wanted";
                let bounded = |most: u64| move |cost: &u64| (1..=most).contains(cost);
                accept("a key slot's Argon2 memory", *memory, bounded(ARGON_MEMORY), cost)?;
                accept("a key slot's Argon2 time", *time, bounded(ARGON_TIME), cost)?;
                accept("a key slot's Argon2 threads", *cpus, bounded(ARGON_CPUS), cost)
            }
            _ => {
                let expected =
                    "pbkdf2, argon2i and argon2id are accepted, with their parameters alone";
                Err(part("a key slot's KDF", r#type, expected))
            }
        }
    }
}

impl Segment {
    fn check(&self, header: u64) -> Result<(), MetadataError> {
        text("the segment's type", &self.r#type, &["crypt"])?;
        let integrity = self.integrity.as_ref();
        let pair = (self.encryption.as_str(), integrity.map(|integrity| integrity.r#type.as_str()));
        let expected = "aes-xts-plain64, with an HMAC or without, aes-gcm-random with AEAD and \
                        chacha20-random with Poly1305 are accepted";
        accept(
            "the segment's cipher with its integrity",
            pair,
            |pair| CIPHERS.contains(pair),
            expected,
        )?;
        if let Some(Integrity { journal_encryption, journal_integrity, key_size, .. }) = integrity {
            let bytes = key_size.unwrap_or(32);
            let fits = |size: &u64| (32..=64).contains(size);
            accept("the integrity's key size", bytes, fits, "32 to 64 bytes are accepted")?;
            text("the journal's encryption", journal_encryption, &["none"])?;
            text("the journal's integrity", journal_integrity, &["none"])?;
        }
        let sectors = [512, 1024, 2048, 4096];
        let sector = |size: &u64| sectors.contains(size);
        accept("the segment's sector size", self.sector_size, sector, "512 to 4096 are accepted")?;
        let whole = |bytes: &u64| bytes.is_multiple_of(self.sector_size);
        let behind = |offset: &u64| *offset >= header && whole(offset);
        accept(
            "the segment's offset",
            self.offset.0,
            behind,
            "it does not begin after the key slots",
        )?;
        accept("the segment's IV tweak", self.iv_tweak.0, |tweak| *tweak == 0, "0 is accepted")?;
        if let Size::Bytes(bytes) = self.size {
            let ends = |bytes: &u64| {
                *bytes > 0 && whole(bytes) && self.offset.0.checked_add(*bytes).is_some()
            };
            accept("the segment's size", bytes, ends, "whole sectors are accepted")?;
        }
        Ok(())
    }
}

impl Digest {
    fn check(&self) -> Result<(), MetadataError> {
        text("the digest's type", &self.r#type, &["pbkdf2"])?;
        text("the digest's hash", &self.hash, &HASHES)?;
        let segments = self.segments.as_slice();
        accept(
            "the digest's segments",
            segments,
            |segments| *segments == ["0"],
            "segment 0 is accepted",
        )
    }
}

fn text(name: &'static str, found: &str, accepted: &[&str]) -> Result<(), MetadataError> {
    let expected = "cryptsetup luksFormat --type luks2 makes others";
    accept(name, found, |found| accepted.contains(found), expected)
}

fn accept<T: fmt::Debug>(
    name: &'static str,
    found: T,
    accepted: impl FnOnce(&T) -> bool,
    expected: &'static str,
) -> Result<(), MetadataError> {
    if accepted(&found) { Ok(()) } else { Err(part(name, &found, expected)) }
}

/// The value is the host's: `Debug` escapes it, and it is cut.
fn part(part: &'static str, found: &dyn fmt::Debug, expected: &'static str) -> MetadataError {
    let found = format!("{found:?}").chars().take(100).collect();
    MetadataError::Part { part, found, expected }
}

/// Sizes here are below 2^32.
fn to_u64(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
