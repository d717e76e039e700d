//! The chain from the attestation key to Intel's root.

use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::judgement::{Ledger, Trust};
use crate::names;
use crate::time::Timestamp;
use crate::x509::{Certificate, PRIME256V1, parse_pem_chain};

use super::checks;
use super::quote::Quote;

/// Whom Intel's root belongs to.
const INTEL: Trust = Trust::Vendor("Intel");
/// SHA-256 of the certificate "Intel SGX Root CA" (valid 2018 to 2049).
pub(crate) const INTEL_ROOT_SHA256: &str =
    "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3";
/// The certificates above a platform's key.
const PCK_ISSUERS: [&str; 2] = ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"];

/// The certificates in a quote, in its order.
pub(crate) struct PckChain {
    pub(crate) leaf: Certificate,
    pub(crate) issuer: Certificate,
    pub(crate) root: Certificate,
}

impl PckChain {
    pub(crate) fn parse(quote: &Quote<'_>) -> Result<Self, String> {
        if quote.qe.certification_type != 5 {
            return Err(format!(
                "the quote has certification data of type {}, not a certificate chain (5)",
                quote.qe.certification_type
            ));
        }
        let found = parse_pem_chain(quote.qe.certificates)?;
        let count = found.len();
        match <[Certificate; 3]>::try_from(found) {
            Ok([leaf, issuer, root]) => Ok(PckChain { leaf, issuer, root }),
            Err(_) => Err(format!(
                "the quote has {count} certificates instead of platform, issuer and root"
            )),
        }
    }

    /// That the names, roles and dates fit, and whose root it is; `test_root` is taken like Intel's.
    /// Says nothing about signatures.
    pub(crate) fn check_shape(&self, test_root: Option<&Certificate>) -> Result<Trust, String> {
        let root = match test_root {
            Some(test_root) if test_root.der == self.root.der => Trust::Test,
            _ => check_intel_root(&self.root).map(|()| INTEL)?,
        };
        if root == INTEL && !PCK_ISSUERS.contains(&self.issuer.common_name().as_str()) {
            return Err(format!("\"{}\" may not certify platforms", self.issuer.shown_name()));
        }
        self.root.check_authority(1).map_err(|why| format!("the root certificate {why}"))?;
        self.issuer.check_authority(0).map_err(|why| format!("the PCK issuer {why}"))?;
        self.leaf.check_leaf().map_err(|why| format!("the PCK certificate {why}"))?;
        for certificate in [&self.root, &self.issuer, &self.leaf] {
            certificate
                .check_critical()
                .map_err(|why| format!("\"{}\" {why}", certificate.shown_name()))?;
        }
        Ok(root)
    }

    /// That each certificate is signed by the next.
    pub(crate) fn check_signatures(&self) -> Result<(), String> {
        let link = |name: &str, below: &Certificate, above: &Certificate| {
            below.check_issued_by(above).map_err(|why| format!("the {name} certificate {why}"))
        };
        link("PCK issuer", &self.issuer, &self.root)?;
        link("PCK", &self.leaf, &self.issuer)
    }

    /// Records `not-yet-valid` and `expired`.
    pub(crate) fn check_dates(&self, ledger: &mut Ledger, at: Timestamp) {
        for certificate in [&self.root, &self.issuer, &self.leaf] {
            let dates = certificate.dates(at);
            let name = certificate.shown_name();
            if !dates.begun {
                let detail = format!("\"{name}\" begins at {}; it is {at}", dates.begin);
                ledger.record(names::NOT_YET_VALID, Err(detail));
            }
            if dates.ended {
                let detail = format!("\"{name}\" ended at {}; it is {at}", dates.end);
                ledger.record(names::EXPIRED, Err(detail));
            }
        }
        ledger.record(names::NOT_YET_VALID, Ok("everything has begun".into()));
        ledger.record(names::EXPIRED, Ok("no certificate of the quote has ended".into()));
    }
}

/// That a certificate is Intel's root, byte for byte.
pub(crate) fn check_intel_root(root: &Certificate) -> Result<(), String> {
    let found = crate::hex::text(digest(&SHA256, &root.der).as_ref());
    if found == INTEL_ROOT_SHA256 {
        Ok(())
    } else {
        Err(format!("the root \"{}\" ({found}) is not Intel's", root.shown_name()))
    }
}

/// Records `quote-signature`.
pub(crate) fn check_quote_signature(ledger: &mut Ledger, quote: &Quote<'_>) {
    let mut point = [4; 65];
    point[1..].copy_from_slice(quote.auth.key);
    ledger.record(
        checks::QUOTE_SIGNATURE,
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(quote.signed, quote.auth.signature)
            .map(|()| "the attestation key signed this quote".into())
            .map_err(|_| "the attestation key did not sign this quote".into()),
    );
}

/// Records `qe-signature`.
pub(crate) fn check_qe_signature(ledger: &mut Ledger, quote: &Quote<'_>, leaf: &Certificate) {
    let valid = leaf.ec_point(PRIME256V1).ok_or("the PCK key is not a P-256 key").and_then(|key| {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
            .verify(quote.qe.report, quote.qe.signature)
            .map_err(|_| "the platform's key did not sign the quoting enclave's report")
    });
    ledger.record(
        checks::QE_SIGNATURE,
        valid
            .map(|()| "the platform's key signed the quoting enclave's report".into())
            .map_err(str::to_owned),
    );
}

/// Records `qe-binding`: the enclave's report data begins with SHA-256(key || authentication data).
pub(crate) fn check_qe_binding(ledger: &mut Ledger, quote: &Quote<'_>) {
    let mut bytes = quote.auth.key.to_vec();
    bytes.extend_from_slice(quote.qe.auth_data);
    let expected = digest(&SHA256, &bytes);
    let found = quote.qe.report.get(320..352);
    ledger.record(
        checks::QE_BINDING,
        if found == Some(expected.as_ref()) {
            Ok("the quoting enclave's report names this attestation key".into())
        } else {
            Err("the quoting enclave's report names another attestation key".into())
        },
    );
}
