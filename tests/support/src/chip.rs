//! A chip whose key everybody has: SEV-SNP reports of any content, signed under the TEST root of
//! `tests/data/evidence/synthetic`.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};

use crate::evidence::file;

/// Offsets in a report (SEV-SNP firmware ABI, ATTESTATION_REPORT).
const POLICY: usize = 0x8;
const REPORT_DATA: usize = 0x50;
const MEASUREMENT: usize = 0x90;
const SIGNATURE: usize = 0x2a0;

/// What a report says beside what the chip says of itself.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Report {
    pub policy: u64,
    pub report_data: [u8; 64],
    pub measurement: [u8; 48],
}

impl Report {
    /// The guest policy of an ordinary guest: SMT allowed, debugging not; bit 17 is always one.
    pub const POLICY: u64 = 0x3_0000;
    /// The guest policy of a guest that the host may debug.
    pub const DEBUG_POLICY: u64 = Self::POLICY | 1 << 19;

    /// The report, signed.
    ///
    /// # Errors
    /// The key or the report that this one is made of cannot be read.
    pub fn sign(&self) -> Result<Vec<u8>> {
        let mut report = file("synthetic/reports/ok-v5.bin")?;
        ensure!(report.len() == 1184, "the report to begin with is no report");
        report[POLICY..POLICY + 8].copy_from_slice(&self.policy.to_le_bytes());
        report[REPORT_DATA..REPORT_DATA + 64].copy_from_slice(&self.report_data);
        report[MEASUREMENT..MEASUREMENT + 48].copy_from_slice(&self.measurement);
        let random = SystemRandom::new();
        let signature = key()?
            .sign(&random, &report[..SIGNATURE])
            .map_err(|_| anyhow::anyhow!("no randomness to sign with"))?;
        // Two little-endian numbers in 72 bytes each.
        for (half, number) in signature.as_ref().chunks_exact(48).enumerate() {
            let field = &mut report[SIGNATURE + 72 * half..][..72];
            field.fill(0);
            for (to, from) in field.iter_mut().zip(number.iter().rev()) {
                *to = *from;
            }
        }
        Ok(report)
    }
}

fn key() -> Result<EcdsaKeyPair> {
    let pem = String::from_utf8(file("synthetic/TEST-ONLY-vcek.key.pem")?)?;
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = BASE64_STANDARD.decode(base64).context("the test chip's key is not PEM")?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &der, &SystemRandom::new())
        .map_err(|error| anyhow::anyhow!("the test chip's key is not a P-384 key: {error}"))
}
