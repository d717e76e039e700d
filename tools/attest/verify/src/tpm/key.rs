//! RSA keys that sign quotes.

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};

/// The exponent that every TPM uses (TPMS_RSA_PARMS: 0 stands for it).
const EXPONENT: [u8; 3] = [1, 0, 1];
/// Bytes of a modulus: RSA of 2048 to 4096 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;

/// A public key.
#[derive(PartialEq, Eq)]
pub(crate) struct RsaKey {
    modulus: Vec<u8>,
}

impl RsaKey {
    /// A key of 2048 to 4096 bits with the exponent 65537; both numbers big-endian.
    pub(crate) fn new(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        let exponent = strip(exponent);
        if exponent != EXPONENT {
            return Err(format!("the exponent {} is not 65537", crate::hex::text(exponent)));
        }
        let modulus = strip(modulus);
        if !MODULUS.contains(&modulus.len()) {
            return Err(format!("a modulus of {} bytes is not of 256 to 512", modulus.len()));
        }
        Ok(RsaKey { modulus: modulus.to_vec() })
    }

    /// RSASSA-PKCS1-v1_5 with SHA-256, over the bytes as they came.
    pub(crate) fn check(&self, message: &[u8], signature: &[u8]) -> Result<String, String> {
        RsaPublicKeyComponents { n: self.modulus.as_slice(), e: EXPONENT.as_slice() }
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .map(|()| "the attestation key signed this quote".into())
            .map_err(|_| "the attestation key did not sign this quote".into())
    }
}

/// Without leading zeros.
fn strip(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_keys_are_refused() {
        assert!(RsaKey::new(&[0xff; 256], &[1, 0, 1]).is_ok());
        assert!(RsaKey::new(&[0xff; 256], &[0, 1, 0, 1]).is_ok());
        assert!(RsaKey::new(&[0xff; 256], &[3]).is_err());
        assert!(RsaKey::new(&[0xff; 128], &[1, 0, 1]).is_err());
        assert!(RsaKey::new(&[0; 256], &[1, 0, 1]).is_err());
        assert!(RsaKey::new(&[0xff; 1024], &[1, 0, 1]).is_err());
    }
}
