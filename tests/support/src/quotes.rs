//! A quote service whose keys everybody has: TDX quotes of any report, signed under the TEST root of
//! `tests/data/evidence/synthetic/quotes`. It stands in for Intel's, and no verifier takes its quotes for
//! Intel's.
//!
//! Sources: Intel TDX module ABI, "TDREPORT_STRUCT"; Intel TDX DCAP quoting library API, appendix "Quote
//! Format"; the messages are those of Intel's quote generation service (`qgs_msg_lib`).

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::evidence;

/// Bytes of a TDREPORT.
const REPORT: usize = 1024;
const INTEL_QE_VENDOR: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];

/// The TEST root, which a verifier has to be told of.
#[must_use]
pub fn root() -> PathBuf {
    evidence::folder().join("synthetic/quotes/root.pem")
}

fn file(name: &str) -> Result<Vec<u8>> {
    evidence::file(&format!("synthetic/quotes/{name}"))
}

fn key(name: &str) -> Result<EcdsaKeyPair> {
    let pem = String::from_utf8(file(&format!("TEST-ONLY-{name}.key.pem"))?)?;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = BASE64_STANDARD.decode(body)?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &SystemRandom::new())
        .map_err(|error| anyhow::anyhow!("the key {name}: {error}"))
}

fn signed(key: &EcdsaKeyPair, bytes: &[u8]) -> Result<Vec<u8>> {
    let signature = key.sign(&SystemRandom::new(), bytes);
    Ok(signature.map_err(|_| anyhow::anyhow!("no randomness to sign with"))?.as_ref().to_vec())
}

/// A field with its length before it.
fn sized(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok([&u32::try_from(bytes.len())?.to_le_bytes()[..], bytes].concat())
}

/// A quote, version 4, of a report. That the report's own code (MAC) is right is not looked at.
///
/// # Errors
/// The report has another length, or the keys cannot be read.
pub fn quote(report: &[u8]) -> Result<Vec<u8>> {
    if report.len() != REPORT {
        bail!("a report has {REPORT} bytes, not {}", report.len());
    }
    let (attestation, platform) = (key("qe")?, key("pck")?);
    let header = [
        &4_u16.to_le_bytes()[..],
        &2_u16.to_le_bytes(),
        &0x81_u32.to_le_bytes(),
        &[0; 4],
        &INTEL_QE_VENDOR,
        &[0; 20],
    ];
    // TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM and the SEAM's attributes; TDINFO up to RTMR3; REPORTDATA.
    let body = [&report[264..384], &report[512..912], &report[128..192]];
    let mut quote = [header.concat(), body.concat()].concat();
    let point = &attestation.public_key().as_ref()[1..];
    let mut enclave = vec![0; 384];
    enclave[320..352].copy_from_slice(digest(&SHA256, point).as_ref());
    let chain = [file("pck.pem")?, file("issuer.pem")?, file("root.pem")?].concat();
    let certification = [
        &enclave[..],
        &signed(&platform, &enclave)?,
        &0_u16.to_le_bytes(),
        &5_u16.to_le_bytes(),
        &sized(&chain)?,
    ];
    let signature = signed(&attestation, &quote)?;
    let auth = [&signature[..], point, &6_u16.to_le_bytes(), &sized(&certification.concat())?];
    quote.extend(sized(&auth.concat())?);
    Ok(quote)
}

/// Answers requests for quotes at a Unix socket, one after the other, for ever.
///
/// # Errors
/// The socket cannot be made, or a client sends something else.
pub fn serve(socket: &Path) -> Result<()> {
    const MESSAGE: usize = 24;
    let listener = UnixListener::bind(socket).context("could not listen for requests")?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 4 + MESSAGE + REPORT];
        stream.read_exact(&mut request)?;
        let quote = quote(&request[4 + MESSAGE..])?;
        let length = u32::try_from(quote.len())?;
        let size = u32::try_from(MESSAGE)? + length;
        // Version 1.0, a response; its size, no error; no identifiers of keys, a quote.
        let mut answer = [&size.to_be_bytes()[..], &[1, 0, 1, 0]].concat();
        answer.extend([1, size, 0, 0, length].into_iter().flat_map(u32::to_le_bytes));
        answer.extend(quote);
        stream.write_all(&answer)?;
    }
    Ok(())
}
