//! SEV-SNP attestation reports.

mod bundle;
mod chain;
pub mod checks;
mod claims;
mod content;
mod policy;
mod product;
mod report;
mod roots;
mod table;
mod vek;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::judgement::{Judgement, Ledger};
use crate::names::{self, CheckName};
use crate::time::Timestamp;

pub use bundle::{BundleError, certificate_table};
pub use claims::{GuestPolicy, SnpClaims};
pub use policy::{MinimumTcb, PlatformInfo, SnpPolicy};
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
    names::LENGTH,
    names::VERSION,
    checks::SIG_ALGO,
    checks::SIGNATURE_ENCODING,
    names::CERTIFICATE_PARSE,
    names::CHAIN,
    names::NOT_YET_VALID,
    names::EXPIRED,
    checks::VEK_EXPIRED,
    checks::VEK_KEY_TYPE,
    checks::CRL_MISSING,
    names::CRL_ISSUER,
    names::CRL_SIGNATURE,
    names::CRL_EXPIRED,
    names::REVOKED,
    names::SIGNATURE,
    checks::SIGNING_KEY,
    checks::PRODUCT_MISMATCH,
    checks::HWID_MISMATCH,
    checks::TCB_ORDER,
    checks::TCB_MISMATCH,
    checks::TCB_MINIMUM,
    names::POLICY_RESERVED,
    checks::RESERVED_NONZERO,
    checks::POLICY_DEBUG,
    checks::POLICY_SMT,
    checks::POLICY_MIGRATE_MA,
    checks::POLICY_SINGLE_SOCKET,
    checks::VMPL,
    names::MEASUREMENT,
    names::REPORT_DATA,
    checks::HOST_DATA,
    checks::GUEST_SVN,
    checks::ID_KEY,
    checks::AUTHOR_KEY,
    checks::NEWER,
    checks::TCB_COMMITTED,
    checks::TCB_LAUNCH,
    checks::PLATFORM_INFO,
    checks::MITIGATIONS,
    checks::CHIP,
    checks::PRODUCT,
    checks::FAMILY_ID,
    checks::IMAGE_ID,
];

/// Judges a report at the time `at`. A `test_root` (DER or PEM) is trusted as if it were AMD's; the
/// claims then say `TEST`.
#[must_use]
pub fn verify(
    evidence: &SnpEvidence<'_>,
    policy: &SnpPolicy,
    test_root: Option<&[u8]>,
    at: Timestamp,
) -> Judgement<SnpClaims> {
    let mut ledger = Ledger::new(ALWAYS);
    let certificates = chain::check(&mut ledger, evidence, policy, test_root, at);
    let report = Report::parse(evidence.report);
    match report {
        Some(_) => ledger.record(names::LENGTH, Ok(format!("{REPORT_LEN} bytes"))),
        None => ledger.malformed(
            names::LENGTH,
            format!("a report has {REPORT_LEN} bytes, this has {}", evidence.report.len()),
        ),
    }
    let trust = certificates.as_ref().and_then(|all| all.root).map(chain::Root::trust);
    let claims = match report {
        None => None,
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
            content::check_platform(&mut ledger, report, policy, product);
            Some(SnpClaims::new(report, product, trust))
        }
    };
    let debuggable = claims.as_ref().is_some_and(|claims| claims.policy.debug_allowed);
    let nothing = "an earlier check failed, so there was nothing to compare";
    Judgement { trust, debuggable, ..ledger.close(claims, nothing) }
}
