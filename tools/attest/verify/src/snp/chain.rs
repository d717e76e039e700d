//! Certificates, their dates, and the revocation list.

use super::policy::SnpPolicy;
use crate::judgement::{Ledger, Trust};
use crate::names::{self, CheckName};
use crate::time::Timestamp;
use crate::x509::{Certificate, Dates, RevocationList, Role, SECP384R1};

use super::product::Product;
use super::roots::AMD_ROOTS;
use super::{SigningKey, SnpEvidence, checks, vek};

/// The root of a chain that is trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// AMD's for a product.
    Amd(Product),
    /// The one that the caller named.
    Test,
}

impl Root {
    pub(crate) fn trust(self) -> Trust {
        match self {
            Root::Amd(_) => Trust::Vendor("AMD"),
            Root::Test => Trust::Test,
        }
    }
}

/// The three certificates, parsed. Nothing says yet that they belong together.
pub(crate) struct Certificates {
    pub(crate) vek: Certificate,
    pub(crate) ask: Certificate,
    pub(crate) ark: Certificate,
    /// Whom the root belongs to; `None` when it is not trusted.
    pub(crate) root: Option<Root>,
}

/// Checks everything about the certificates that needs no report.
pub(crate) fn check(
    ledger: &mut Ledger,
    evidence: &SnpEvidence<'_>,
    policy: &SnpPolicy,
    test_root: Option<&[u8]>,
    at: Timestamp,
) -> Option<Certificates> {
    let certificates = parse(ledger, evidence, test_root);
    let crl = read_list(ledger, evidence.crl, policy.crl_required == Some(true));
    let certificates = certificates?;
    ledger.record(names::CHAIN, check_chain(&certificates));
    check_dates(ledger, &certificates, at);
    check_key_type(ledger, &certificates.vek);
    if let Some(crl) = crl {
        check_list(ledger, &crl, &certificates, at);
    }
    Some(certificates)
}

fn parse(
    ledger: &mut Ledger,
    evidence: &SnpEvidence<'_>,
    test_root: Option<&[u8]>,
) -> Option<Certificates> {
    let mut read = |name: &str, parsed: Result<Certificate, String>| {
        parsed
            .map_err(|why| {
                ledger.malformed(names::CERTIFICATE_PARSE, format!("{name} certificate: {why}"));
            })
            .ok()
    };
    let vek = read("endorsement key (VEK)", Certificate::parse(evidence.vek));
    let ask = read("intermediate (ASK)", Certificate::parse_role(evidence.ask, Role::Intermediate));
    let ark = read("root (ARK)", Certificate::parse_role(evidence.ark, Role::Root));
    let test_root =
        test_root.map(|bytes| read("test root", Certificate::parse_role(bytes, Role::Root)));
    let (vek, ask, ark) = (vek?, ask?, ark?);
    let test_root = match test_root {
        None => None,
        Some(test_root) => Some(test_root?),
    };
    ledger.record(names::CERTIFICATE_PARSE, Ok("all certificates are well formed".into()));
    let root = root(&ark, test_root.as_ref());
    Some(Certificates { vek, ask, ark, root })
}

/// Whom a root certificate belongs to: byte for byte one of AMD's, or the test root.
fn root(ark: &Certificate, test_root: Option<&Certificate>) -> Option<Root> {
    let amd = AMD_ROOTS.iter().find(|root| root.ark == ark.der);
    match amd {
        Some(root) => Some(Root::Amd(root.product)),
        None => test_root.filter(|root| root.der == ark.der).map(|_| Root::Test),
    }
}

fn check_chain(certificates: &Certificates) -> Result<String, String> {
    let Certificates { vek, ask, ark, root } = certificates;
    let root = root.ok_or_else(|| {
        format!(
            "the root certificate \"{}\" is not one of AMD's; a test root must be named as such",
            ark.shown_name()
        )
    })?;
    check_links(vek, ask, ark)?;
    Ok(match root {
        Root::Amd(product) => format!("leads to AMD's root for {product}"),
        Root::Test => "leads to the TEST root that was named, which proves nothing".into(),
    })
}

/// That each certificate was issued by the next one, and the last by itself.
pub(crate) fn check_links(
    vek: &Certificate,
    ask: &Certificate,
    ark: &Certificate,
) -> Result<(), String> {
    let link = |name: &str, result: Result<(), String>| {
        result.map_err(|why| format!("the {name} certificate {why}"))
    };
    for (name, certificate) in [("ARK", ark), ("ASK", ask), ("VEK", vek)] {
        link(name, certificate.check_critical())?;
    }
    link("ARK", ark.check_authority(1))?;
    link("ASK", ask.check_authority(0))?;
    link("VEK", vek.check_leaf())?;
    link("ARK", ark.check_issued_by(ark))?;
    link("ASK", ask.check_issued_by(ark))?;
    link("VEK", vek.check_issued_by(ask))?;
    check_kind(vek, ask)
}

/// A VCEK is signed by an ASK ("SEV-Milan"), a VLEK by an ASVK ("SEV-VLEK-Milan").
fn check_kind(vek: &Certificate, ask: &Certificate) -> Result<(), String> {
    let issuer = ask.common_name();
    let kind = vek::kind(vek)
        .ok_or_else(|| format!("\"{}\" is neither SEV-VCEK nor SEV-VLEK", vek.shown_name()))?;
    let fits = match kind {
        SigningKey::Vcek => issuer.starts_with("SEV-") && !issuer.starts_with("SEV-VLEK"),
        SigningKey::Vlek => issuer.starts_with("SEV-VLEK-"),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("\"{}\" may not issue a \"{}\"", ask.shown_name(), vek.shown_name()))
    }
}

fn check_dates(ledger: &mut Ledger, certificates: &Certificates, at: Timestamp) {
    let all = [
        ("ARK", certificates.ark.dates(at)),
        ("ASK", certificates.ask.dates(at)),
        ("VEK", certificates.vek.dates(at)),
    ];
    for (name, Dates { begin, end, begun, ended }) in &all {
        if !begun {
            let detail = format!("the {name} certificate begins at {begin}; it is {at}");
            ledger.record(names::NOT_YET_VALID, Err(detail));
        }
        if *ended {
            let detail = format!("the {name} certificate ended at {end}; it is {at}");
            ledger.record(names::EXPIRED, Err(detail.clone()));
            if *name == "VEK" {
                ledger.record(checks::VEK_EXPIRED, Err(detail));
            }
        }
    }
    let [.., (_, vek)] = &all;
    ledger.record(checks::VEK_EXPIRED, Ok(format!("ends at {}", vek.end)));
    let first_end = all.iter().map(|(_, dates)| dates.end).min().unwrap_or(at);
    ledger.record(names::EXPIRED, Ok(format!("the first to end ends at {first_end}")));
    let last_begin = all.iter().map(|(_, dates)| dates.begin).max().unwrap_or(at);
    ledger.record(names::NOT_YET_VALID, Ok(format!("the last to begin began at {last_begin}")));
}

fn check_key_type(ledger: &mut Ledger, vek: &Certificate) {
    ledger.record(
        checks::VEK_KEY_TYPE,
        match vek.ec_point(SECP384R1) {
            Some(_) => Ok("P-384".into()),
            None => Err("the endorsement key is not a P-384 key".into()),
        },
    );
}

/// Settles `crl-missing`, and the list's other checks when there is no list.
fn read_list(ledger: &mut Ledger, crl: Option<&[u8]>, required: bool) -> Option<RevocationList> {
    const OF_A_LIST: [CheckName; 4] =
        [names::CRL_ISSUER, names::CRL_SIGNATURE, names::CRL_EXPIRED, names::REVOKED];
    match crl.map(RevocationList::parse) {
        Some(Ok(list)) => {
            ledger.record(checks::CRL_MISSING, Ok("a revocation list was given".into()));
            Some(list)
        }
        Some(Err(why)) => {
            ledger.malformed(names::CRL_SIGNATURE, format!("revocation list: {why}"));
            None
        }
        None if required => {
            let detail = "the policy requires a revocation list, and none was given";
            ledger.record(checks::CRL_MISSING, Err(detail.into()));
            for name in OF_A_LIST {
                ledger.not_done(name, "no revocation list was given");
            }
            None
        }
        None => {
            ledger.unset(checks::CRL_MISSING);
            for name in OF_A_LIST {
                ledger.unset(name);
            }
            None
        }
    }
}

fn check_list(
    ledger: &mut Ledger,
    list: &RevocationList,
    certificates: &Certificates,
    at: Timestamp,
) {
    let Certificates { ark, ask, .. } = certificates;
    ledger.record(names::CRL_ISSUER, list.check_issuer(ark));
    ledger.record(names::CRL_SIGNATURE, list.check_signature(ark));
    let Dates { begin, end, begun, ended } = list.dates(at);
    let mut current = Ok(format!("of {begin}, next at {end}"));
    if ended {
        current = Err(format!("the list of {begin} was good until {end}; it is {at}"));
    }
    if !begun {
        let detail = format!("the revocation list begins at {begin}; it is {at}");
        ledger.record(names::NOT_YET_VALID, Err(detail.clone()));
        current = Err(detail);
    }
    ledger.record(names::CRL_EXPIRED, current);
    // The list is the root's: it speaks of the certificates that the root issued, by serial number.
    let revoked = [("ARK", ark), ("ASK", ask)]
        .into_iter()
        .find(|(_, certificate)| list.lists(certificate))
        .map(|(name, _)| format!("the {name} certificate is on the revocation list"));
    ledger.record(
        names::REVOKED,
        revoked.map_or(Ok("neither ARK nor ASK is on the list".into()), Err),
    );
}

/// Whether root and intermediate are of `product`; a test root that names none is not asked.
pub(crate) fn issuers_fit(certificates: &Certificates, product: Product) -> Result<(), String> {
    let named = |certificate: &Certificate, prefixes: &[&str]| {
        let name = certificate.common_name();
        let found = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        found.and_then(Product::from_name)
    };
    let root = match certificates.root {
        Some(Root::Amd(root)) => Some(root),
        Some(Root::Test) | None => named(&certificates.ark, &["ARK-"]),
    };
    let middle = named(&certificates.ask, &["SEV-VLEK-", "SEV-"]);
    match [root, middle].into_iter().flatten().find(|issuer| *issuer != product) {
        None => Ok(()),
        Some(issuer) => Err(format!("the issuing certificates are for {issuer}")),
    }
}
