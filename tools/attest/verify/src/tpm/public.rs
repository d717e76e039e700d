//! TPMT_PUBLIC: a key with the purposes that its TPM allows (TPM 2.0 Library, part 2, section 12.2.4).

use super::RsaKey;
use super::reader::Reader;

/// TPM_ALG_RSA, TPM_ALG_NULL.
const RSA: u16 = 0x0001;
const NULL: u16 = 0x0010;
/// TPMA_OBJECT: the key signs only what the TPM made; it signs; it does not decrypt.
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;
/// TPMA_OBJECT: the TPM made the key, and it cannot leave.
const FIXED_TPM: u32 = 1 << 1;

/// A public area of an RSA key.
pub(crate) struct PublicArea<'a> {
    attributes: u32,
    exponent: u32,
    modulus: &'a [u8],
}

impl<'a> PublicArea<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        Self::read(&mut reader)
            .filter(|_| reader.0.is_empty())
            .ok_or_else(|| format!("{} bytes are not the public area of an RSA key", bytes.len()))
    }

    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        reader.u16().filter(|kind| *kind == RSA)?;
        let (_name_algorithm, attributes) = (reader.u16()?, reader.u32()?);
        let _policy = reader.sized()?;
        if reader.u16()? != NULL {
            // Key bits and mode of a symmetric algorithm.
            reader.take(4)?;
        }
        if reader.u16()? != NULL {
            // The scheme's hash.
            reader.take(2)?;
        }
        let (_bits, exponent) = (reader.u16()?, reader.u32()?);
        Some(PublicArea { attributes, exponent, modulus: reader.sized()? })
    }

    /// The key, if it can sign nothing that its TPM did not make: TPM_GENERATED at the start of a quote says
    /// nothing for another key.
    pub(crate) fn signing_key(&self) -> Result<RsaKey, String> {
        let needed = RESTRICTED | SIGN | FIXED_TPM;
        if self.attributes & needed != needed || self.attributes & DECRYPT != 0 {
            return Err(format!(
                "attributes {:#x} are not those of a restricted key for signatures",
                self.attributes
            ));
        }
        // Zero stands for 65537 (section 12.2.3.5).
        let exponent = if self.exponent == 0 { 65537 } else { self.exponent };
        RsaKey::new(self.modulus, &exponent.to_be_bytes())
    }
}

/// The signature in a TPMT_SIGNATURE of RSASSA with SHA-256 (section 11.3.4).
pub(crate) fn rsassa_sha256(bytes: &[u8]) -> Option<&[u8]> {
    const RSASSA: u16 = 0x0014;
    const SHA256: u16 = 0x000b;
    let mut reader = Reader(bytes);
    let scheme = (reader.u16()?, reader.u16()?);
    let signature = reader.sized()?;
    (scheme == (RSASSA, SHA256) && reader.0.is_empty()).then_some(signature)
}
