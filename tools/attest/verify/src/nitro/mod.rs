//! Attestation documents of AWS Nitro enclaves and NitroTPM: COSE_Sign1 by a key that AWS certifies for hours.

pub mod checks;
mod document;
mod policy;

use serde::Serialize;

use crate::hex;
use crate::judgement::{Judgement, Ledger, Trust};
use crate::names::{self, CheckName};
use crate::time::Timestamp;
use crate::tpm;
use crate::x509::{Certificate, SECP384R1};

pub use policy::NitroPolicy;

use crate::cose::{Algorithm, Sign1};
use document::Document;

/// AWS's root for Nitro enclaves, SHA-256 641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b; source: the
/// archive AWS_NitroEnclaves_Root-G1.zip, which the documentation of Nitro enclaves names.
const ROOT: &[u8] = include_bytes!("../../roots/aws-nitro.der");
/// The longest document that is read.
const MAX_DOCUMENT: usize = 16 * 1024;
/// Certificates between root and leaf at most: of region, zone and instance.
const MAX_CHAIN: usize = 8;

/// What a document says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct NitroClaims {
    /// `"nitro"`.
    pub platform: &'static str,
    /// The enclave's or instance's identifier.
    pub module_id: String,
    /// When the document was made, in milliseconds since 1970, by the hypervisor's clock.
    pub timestamp_ms: u64,
    /// Registers by number, in hexadecimal digits.
    pub pcrs: std::collections::BTreeMap<u32, String>,
    /// What the guest put in, in hexadecimal digits; null when absent.
    pub user_data: Option<String>,
    /// The guest's key; null when absent.
    pub public_key: Option<String>,
    /// The caller's nonce; null when absent.
    pub nonce: Option<String>,
}

const ALWAYS: &[CheckName] = &[
    names::PARSE,
    names::COSE_ALGORITHM,
    names::CERTIFICATE_PARSE,
    names::CHAIN,
    checks::CERT_EXPIRED,
    names::SIGNATURE,
    checks::DEBUG_MODE,
    tpm::checks::PCR,
    tpm::checks::NONCE,
    names::REPORT_DATA,
];

/// Judges a document at the time `at`.
#[must_use]
pub fn verify(bytes: &[u8], policy: &NitroPolicy, at: Timestamp) -> Judgement<NitroClaims> {
    let mut ledger = Ledger::new(ALWAYS);
    let read = if bytes.len() > MAX_DOCUMENT {
        Err(format!("{} bytes, at most {MAX_DOCUMENT} are read", bytes.len()))
    } else {
        Sign1::parse(bytes).and_then(|message| {
            Document::parse(message.payload).map(|document| (message, document))
        })
    };
    let (message, document) = match read {
        Ok(read) => read,
        Err(why) => {
            ledger.malformed(names::PARSE, why);
            return ledger.close(None, "the document could not be read");
        }
    };
    ledger.record(names::PARSE, Ok(format!("{} bytes", bytes.len())));
    ledger.record(
        names::COSE_ALGORITHM,
        match message.algorithm() {
            Ok(Algorithm::Es384) => Ok("ES384".into()),
            Ok(other) => Err(format!("{other:?} is not ES384")),
            Err(why) => Err(why),
        },
    );
    let trust = check_chain(&mut ledger, &message, &document, at);
    document.check_mode(&mut ledger);
    ledger.condition(tpm::checks::PCR, policy.pcrs.as_ref(), |wanted| document.check_pcrs(wanted));
    let field = |what: &str, found: Option<&[u8]>, wanted: &Vec<u8>| match found {
        Some(found) if found == wanted.as_slice() => Ok(hex::text(found)),
        Some(found) => {
            Err(format!("{what} is {}, the policy wants {}", hex::text(found), hex::text(wanted)))
        }
        None => Err(format!("the document has no {what}")),
    };
    ledger.condition(tpm::checks::NONCE, policy.nonce.as_ref(), |wanted| {
        field("nonce", document.nonce, wanted)
    });
    ledger.condition(names::REPORT_DATA, policy.user_data.as_ref(), |wanted| {
        field("user_data", document.user_data, wanted)
    });
    let debuggable = document.is_debug();
    let claims = document.claims();
    let nothing = "an earlier check failed, so there was nothing to compare";
    Judgement { trust, debuggable, ..ledger.close(Some(claims), nothing) }
}

/// Checks certificates and the signature by the last of them.
fn check_chain(
    ledger: &mut Ledger,
    message: &Sign1<'_>,
    document: &Document<'_>,
    at: Timestamp,
) -> Option<Trust> {
    let chain = match read_chain(document) {
        Ok(chain) => chain,
        Err(why) => {
            ledger.record(names::CERTIFICATE_PARSE, Err(why));
            return None;
        }
    };
    let detail = format!("{} well-formed certificates", chain.len());
    ledger.record(names::CERTIFICATE_PARSE, Ok(detail));
    for certificate in &chain {
        let dates = certificate.dates(at);
        if !dates.begun || dates.ended {
            let (name, begin, end) = (certificate.shown_name(), dates.begin, dates.end);
            let detail = format!("\"{name}\" is valid from {begin} to {end}; it is {at}");
            ledger.record(checks::CERT_EXPIRED, Err(detail));
        }
    }
    ledger.record(checks::CERT_EXPIRED, Ok("every certificate is valid".into()));
    let links = check_links(&chain);
    let trusted = links.is_ok();
    ledger.record(names::CHAIN, links.map(|()| "leads to AWS's root for Nitro enclaves".into()));
    let leaf = chain.last()?;
    let signed = leaf
        .ec_point(SECP384R1)
        .ok_or_else(|| "the document's certificate does not have a P-384 key".to_owned())
        .and_then(|point| message.check(point));
    ledger.record(
        names::SIGNATURE,
        signed.map(|()| "the document's certificate key signed it".into()),
    );
    trusted.then_some(Trust::Vendor("AWS"))
}

/// The chain in the order of issue: root first, the document's certificate last.
fn read_chain(document: &Document<'_>) -> Result<Vec<Certificate>, String> {
    if document.cabundle.len() > MAX_CHAIN {
        return Err(format!("{} certificates, at most {MAX_CHAIN}", document.cabundle.len()));
    }
    let ders = document.cabundle.iter().chain([&document.certificate]);
    ders.map(|der| Certificate::parse(der)).collect()
}

fn check_links(chain: &[Certificate]) -> Result<(), String> {
    let [root, .., leaf] = chain else { return Err("there is no chain to a root".into()) };
    if root.der != ROOT {
        return Err(format!("the first certificate, \"{}\", is not AWS's root", root.shown_name()));
    }
    root.check_issued_by(root).map_err(|why| format!("the root {why}"))?;
    let named = |certificate: &Certificate, why: String| {
        format!("the certificate \"{}\" {why}", certificate.shown_name())
    };
    for (below, pair) in (0..chain.len() - 1).rev().zip(chain.windows(2)) {
        let [issuer, certificate] = pair else { continue };
        // Authorities below this issuer, its own leaf aside.
        let authorities = u8::try_from(below).unwrap_or(u8::MAX);
        issuer.check_authority(authorities).map_err(|why| named(issuer, why))?;
        certificate.check_issued_by(issuer).map_err(|why| named(certificate, why))?;
    }
    leaf.check_leaf().map_err(|why| named(leaf, why))?;
    for certificate in chain {
        certificate.check_critical().map_err(|why| named(certificate, why))?;
    }
    Ok(())
}
