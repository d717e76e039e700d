//! SEV-SNP attestation reports.

mod bundle;
mod chain;
mod claims;
mod content;
mod product;
mod report;
mod roots;
mod table;
mod vek;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::judgement::{Claims, Judgement, Ledger};
use crate::names::CheckName;
use crate::policy::SnpPolicy;
use crate::time::Timestamp;

pub use bundle::{BundleError, certificate_table};
pub use claims::{GuestPolicy, SnpClaims, Trust};
pub use product::{Product, Tcb};
pub use report::{REPORT_LEN, Report, SIGNED_LEN};
pub use roots::chain_for;
pub use table::{CertificateTable, TableError};
pub use vek::choose_vek;

/// The key that signed a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SigningKey {
    /// Versioned chip endorsement key: of one chip.
    Vcek,
    /// Versioned loaded endorsement key: of one cloud provider.
    Vlek,
}

impl SigningKey {
    /// The key that a report names; `None` when it names neither.
    fn of(report: &Report) -> Option<Self> {
        match report.key_info.get() >> 2 & 0b111 {
            0 => Some(SigningKey::Vcek),
            1 => Some(SigningKey::Vlek),
            _ => None,
        }
    }
}

impl fmt::Display for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            SigningKey::Vcek => "VCEK",
            SigningKey::Vlek => "VLEK",
        })
    }
}

/// A report and what vouches for it. Certificates and the list are DER or PEM.
#[derive(Clone, Copy, Debug)]
pub struct SnpEvidence<'a> {
    /// The report, [`REPORT_LEN`] bytes.
    pub report: &'a [u8],
    /// The endorsement key's certificate: VCEK or VLEK.
    pub vek: &'a [u8],
    /// The certificate above it: ASK for a VCEK, ASVK for a VLEK.
    pub ask: &'a [u8],
    /// The root's certificate. It must be one of AMD's, or the test root.
    pub ark: &'a [u8],
    /// The root's certificate revocation list.
    pub crl: Option<&'a [u8]>,
}

/// The checks of every report. Those that a policy asks for come on top.
const ALWAYS: &[CheckName] = &[
    CheckName::Length,
    CheckName::Version,
    CheckName::SigAlgo,
    CheckName::SignatureEncoding,
    CheckName::CertificateParse,
    CheckName::Chain,
    CheckName::NotYetValid,
    CheckName::Expired,
    CheckName::VekExpired,
    CheckName::VekKeyType,
    CheckName::CrlMissing,
    CheckName::CrlIssuer,
    CheckName::CrlSignature,
    CheckName::CrlExpired,
    CheckName::Revoked,
    CheckName::Signature,
    CheckName::SigningKey,
    CheckName::ProductMismatch,
    CheckName::HwidMismatch,
    CheckName::TcbOrder,
    CheckName::TcbMismatch,
    CheckName::TcbMinimum,
    CheckName::PolicyReserved,
    CheckName::ReservedNonzero,
    CheckName::PolicyDebug,
    CheckName::PolicySmt,
    CheckName::PolicyMigrateMa,
    CheckName::PolicySingleSocket,
    CheckName::Vmpl,
    CheckName::Measurement,
    CheckName::ReportData,
    CheckName::HostData,
    CheckName::GuestSvn,
    CheckName::IdKey,
    CheckName::AuthorKey,
];

/// Judges a report at the time `at`. A `test_root` (DER or PEM) is trusted as if it were AMD's; the
/// claims then say `TEST`.
#[must_use]
pub fn verify(
    evidence: &SnpEvidence<'_>,
    policy: &SnpPolicy,
    test_root: Option<&[u8]>,
    at: Timestamp,
) -> Judgement {
    let mut ledger = Ledger::new(ALWAYS);
    let certificates = chain::check(&mut ledger, evidence, policy, test_root, at);
    let report = Report::parse(evidence.report);
    match report {
        Some(_) => ledger.record(CheckName::Length, Ok(format!("{REPORT_LEN} bytes"))),
        None => ledger.malformed(
            CheckName::Length,
            format!("a report has {REPORT_LEN} bytes, this has {}", evidence.report.len()),
        ),
    }
    let claims = match report {
        None => Claims::None {},
        Some(report) => {
            let certificates = certificates.as_ref();
            let product = content::product(report, certificates);
            content::check_format(&mut ledger, report, policy, product);
            if let Some(all) = certificates {
                content::check_endorsement(&mut ledger, report, evidence.report, all, product);
            }
            content::check_tcb(&mut ledger, report, policy, certificates, product);
            content::check_signing_key(&mut ledger, report, policy, certificates);
            content::check_policy(&mut ledger, report, policy);
            let trust = certificates.and_then(|certificates| certificates.trust);
            Claims::Snp(Box::new(SnpClaims::new(report, product, trust)))
        }
    };
    ledger.close(claims, "an earlier check failed, so there was nothing to compare")
}
