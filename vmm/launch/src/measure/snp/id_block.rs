//! The ID block of an SNP guest, and the page of signatures over it.
//!
//! Source: SEV-SNP firmware ABI, tables "Structure of the ID Block" and "Structure of the ID
//! Authentication Information", and the appendix on ECDSA P-384 keys and signatures, whose numbers
//! are little endian.

use p384::ecdsa::{Signature, signature::Signer as _};
use p384::pkcs8::DecodePrivateKey as _;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::{Digest384, IdBlock};

/// Fields of an ID block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdBlockFields {
    /// The digest that the guest must have.
    pub launch_digest: Digest384,
    /// FAMILY_ID of the report.
    pub family_id: [u8; 16],
    /// IMAGE_ID of the report.
    pub image_id: [u8; 16],
    /// Version of the format, 1.
    pub version: u32,
    /// GUEST_SVN of the report.
    pub guest_svn: u32,
    /// The policy that the guest must be launched with.
    pub policy: u64,
}

/// A key that signs ID blocks or other keys.
pub struct SigningKey(p384::ecdsa::SigningKey);

/// Why something is no key that can sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not text, or not PEM.
    #[error(
        "not a private key in PEM: \"BEGIN PRIVATE KEY\" or \"BEGIN EC PRIVATE KEY\" is missing"
    )]
    NoPem,
    /// The key is behind a password.
    #[error("the key is encrypted; decrypt it first, for example with openssl pkey")]
    Encrypted,
    /// PKCS #8, but not P-384.
    #[error("the key is not an ECDSA key on the curve P-384: {0}")]
    Pkcs8(p384::pkcs8::Error),
    /// SEC 1, but not P-384.
    #[error("the key is not an ECDSA key on the curve P-384")]
    Sec1,
}

/// ECDSA P-384 with SHA-384, in both algorithm fields.
const P384_SHA384: u32 = 1;
/// The curve in a public key.
const CURVE_P384: u32 = 2;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Block {
    launch_digest: [u8; 48],
    family_id: [u8; 16],
    image_id: [u8; 16],
    version: U32,
    guest_svn: U32,
    policy: U64,
}

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct PublicKey {
    curve: U32,
    qx: [u8; 72],
    qy: [u8; 72],
    reserved: [u8; 0x370],
}

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct RawSignature {
    r: [u8; 72],
    s: [u8; 72],
    reserved: [u8; 512 - 144],
}

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Authentication {
    id_key_algorithm: U32,
    author_key_algorithm: U32,
    reserved: [u8; 56],
    block_signature: RawSignature,
    id_key: PublicKey,
    reserved2: [u8; 60],
    id_key_signature: RawSignature,
    author_key: PublicKey,
    reserved3: [u8; 892],
}

const _: () = {
    assert!(size_of::<Block>() == 96 && size_of::<PublicKey>() == 0x404);
    assert!(size_of::<Authentication>() == 4096);
    assert!(std::mem::offset_of!(Authentication, id_key) == 0x240);
    assert!(std::mem::offset_of!(Authentication, id_key_signature) == 0x680);
    assert!(std::mem::offset_of!(Authentication, author_key) == 0x880);
};

/// Makes an ID block, signed by `id_key`, which in turn is signed by `author_key` if there is one.
///
/// Signatures are deterministic (RFC 6979): the same input gives the same bytes.
#[must_use]
pub fn sign(
    fields: &IdBlockFields,
    id_key: &SigningKey,
    author_key: Option<&SigningKey>,
) -> IdBlock {
    let block = Block {
        launch_digest: fields.launch_digest.0,
        family_id: fields.family_id,
        image_id: fields.image_id,
        version: U32::new(fields.version),
        guest_svn: U32::new(fields.guest_svn),
        policy: U64::new(fields.policy),
    };
    let mut page = Authentication::new_zeroed();
    page.id_key_algorithm = U32::new(P384_SHA384);
    page.block_signature = id_key.sign(block.as_bytes());
    page.id_key = id_key.public();
    if let Some(author_key) = author_key {
        page.author_key_algorithm = U32::new(P384_SHA384);
        page.id_key_signature = author_key.sign(page.id_key.as_bytes());
        page.author_key = author_key.public();
    }
    let mut signed = IdBlock {
        block: Box::new([0; 96]),
        authentication: Box::new([0; 4096]),
        author_key: author_key.is_some(),
    };
    signed.block.copy_from_slice(block.as_bytes());
    signed.authentication.copy_from_slice(page.as_bytes());
    signed
}

impl SigningKey {
    /// Reads a private key in PEM: PKCS #8, or SEC 1 as `openssl ecparam -genkey` writes it.
    ///
    /// # Errors
    /// It is anything else than an unencrypted P-384 key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let pem = str::from_utf8(pem).map_err(|_| KeyError::NoPem)?;
        // Curve parameters may stand before the key.
        let from = |label: &str| pem.find(label).map(|at| &pem[at..]);
        let secret = if let Some(pem) = from("-----BEGIN PRIVATE KEY-----") {
            p384::SecretKey::from_pkcs8_pem(pem).map_err(KeyError::Pkcs8)?
        } else if let Some(pem) = from("-----BEGIN EC PRIVATE KEY-----") {
            if pem.contains("ENCRYPTED") {
                return Err(KeyError::Encrypted);
            }
            p384::SecretKey::from_sec1_pem(pem).map_err(|_| KeyError::Sec1)?
        } else if pem.contains("ENCRYPTED PRIVATE KEY") {
            return Err(KeyError::Encrypted);
        } else {
            return Err(KeyError::NoPem);
        };
        Ok(Self(secret.into()))
    }

    /// SHA-384 of the public key as the firmware hashes it: ID_KEY_DIGEST or AUTHOR_KEY_DIGEST of a
    /// report.
    #[must_use]
    pub fn digest(&self) -> Digest384 {
        Digest384::of(self.public().as_bytes())
    }

    fn public(&self) -> PublicKey {
        let point = self.0.verifying_key().to_encoded_point(false);
        let mut key = PublicKey::new_zeroed();
        key.curve = U32::new(CURVE_P384);
        // A public key is never the point at infinity, the only one without coordinates.
        key.qx = little_endian(point.x().map_or(&[], |x| &x[..]));
        key.qy = little_endian(point.y().map_or(&[], |y| &y[..]));
        key
    }

    fn sign(&self, message: &[u8]) -> RawSignature {
        let signature: Signature = self.0.sign(message);
        let (r, s) = signature.split_bytes();
        let mut raw = RawSignature::new_zeroed();
        raw.r = little_endian(&r);
        raw.s = little_endian(&s);
        raw
    }
}

/// A big-endian number, turned round and padded.
fn little_endian(number: &[u8]) -> [u8; 72] {
    let mut field = [0; 72];
    for (to, from) in field.iter_mut().zip(number.iter().rev()) {
        *to = *from;
    }
    field
}
