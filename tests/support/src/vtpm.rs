//! A guest of Azure's kind whose keys everybody has: the paravisor's report around a report of the TEST
//! chip, and quotes of any content by a TEST key.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::json;

use crate::chip::Report;
use crate::evidence::file;

/// TPM_ALG_SHA256 and TPM_ALG_SHA1.
pub const SHA256_BANK: u16 = 0x000b;
/// See [`SHA256_BANK`].
pub const SHA1_BANK: u16 = 0x0004;

/// A machine with its TPM.
pub struct Machine {
    key: RsaKeyPair,
}

impl Machine {
    /// The machine with the key of `tests/data/evidence/synthetic`.
    ///
    /// # Errors
    /// The key cannot be read.
    pub fn new() -> Result<Self> {
        let pem = String::from_utf8(file("synthetic/TEST-ONLY-ak.key.pem")?)?;
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = BASE64_STANDARD.decode(base64).context("the TEST key is not PEM")?;
        let key = RsaKeyPair::from_pkcs8(&der);
        Ok(Machine { key: key.map_err(|error| anyhow::anyhow!("the TEST key: {error}"))? })
    }

    /// The paravisor's report: runtime data with the machine's key, hashed into the TEST chip's report.
    ///
    /// # Errors
    /// See [`Report::sign`].
    pub fn hcl(&self, user_data: &[u8; 64], measurement: [u8; 48]) -> Result<Vec<u8>> {
        let public: ring::rsa::PublicKeyComponents<Vec<u8>> = self.key.public_key().into();
        let number = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let user_data: String = user_data.iter().map(|byte| format!("{byte:02X}")).collect();
        let runtime = json!({
            "keys": [{"kid": "HCLAkPub", "kty": "RSA", "e": number(&public.e), "n": number(&public.n)}],
            "vm-configuration": {"secure-boot": true, "vmUniqueId": "TEST"},
            "user-data": user_data,
        })
        .to_string();
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(digest(&SHA256, runtime.as_bytes()).as_ref());
        let report = Report { policy: Report::POLICY, report_data, measurement }.sign()?;
        let length = u32::try_from(runtime.len())?;
        let numbers = |list: &[u32]| -> Vec<u8> {
            list.iter().flat_map(|number| number.to_le_bytes()).collect()
        };
        let magic = u32::from_le_bytes(*b"HCLA");
        Ok([
            numbers(&[magic, 2, 0x4d4 + length, 2, 0, 0, 0, 0]),
            report,
            numbers(&[20 + length, 1, 2, 1, length]),
            runtime.into_bytes(),
            vec![0; 64],
        ]
        .concat())
    }

    /// A quote over these banks' selections, with this digest of values: message and signature.
    ///
    /// # Errors
    /// No randomness to sign with.
    pub fn quote(
        &self,
        nonce: &[u8],
        banks: &[(u16, [u8; 3])],
        values: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>)> {
        let sized = |bytes: &[u8]| -> Result<Vec<u8>> {
            Ok([&u16::try_from(bytes.len())?.to_be_bytes()[..], bytes].concat())
        };
        let mut message =
            [&b"\xffTCG\x80\x18"[..], &sized(b"name")?, &sized(nonce)?, &[0; 25]].concat();
        message.extend(u32::try_from(banks.len())?.to_be_bytes());
        for (bank, map) in banks {
            message.extend(bank.to_be_bytes());
            message.push(3);
            message.extend(map);
        }
        message.extend(sized(digest(&SHA256, values).as_ref())?);
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &message, &mut signature)
            .map_err(|_| anyhow::anyhow!("no randomness to sign with"))?;
        Ok((message, signature))
    }
}
