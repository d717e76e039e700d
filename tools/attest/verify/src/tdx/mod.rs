//! TDX quotes.

pub mod checks;
mod claims;
mod collateral;
mod content;
mod platform;
mod policy;
mod quote;
mod tcb;

use crate::judgement::{Judgement, Ledger, Trust, Verdict};
use crate::names::{self, CheckName};
use crate::time::Timestamp;
use crate::x509::Certificate;

use collateral::Collateral;
use platform::PckChain;
use quote::{Header, Quote, TEE_TDX};

pub use claims::TdxClaims;
pub use policy::{TcbStatus, TdxPolicy};
pub use quote::{TdReport, td_report};

/// A quote and what there is to judge it by.
#[derive(Clone, Copy, Debug)]
pub struct TdxEvidence<'a> {
    /// The quote, version 4 or 5.
    pub quote: &'a [u8],
    /// TCB information, enclave identity and revocation lists as one JSON object. Without them the
    /// best verdict is [`Verdict::NoCollateral`].
    pub collateral: Option<&'a [u8]>,
    /// The guest's event log: CCEL, or a JSON list.
    pub event_log: Option<&'a [u8]>,
}

/// What makes a quote genuine, collateral or not.
const GENUINE: &[CheckName] = &[
    names::LENGTH,
    names::VERSION,
    checks::TEE_TYPE,
    checks::BODY,
    checks::ATT_KEY_TYPE,
    names::CERTIFICATE_PARSE,
    names::CHAIN,
    names::NOT_YET_VALID,
    names::EXPIRED,
    checks::QUOTE_SIGNATURE,
    checks::QE_BINDING,
    checks::QE_SIGNATURE,
];

/// What collateral is needed for.
const BY_COLLATERAL: &[CheckName] = &[
    names::CRL_ISSUER,
    names::CRL_SIGNATURE,
    names::CRL_EXPIRED,
    names::REVOKED,
    checks::COLLATERAL_SIGNATURE,
    checks::COLLATERAL_EXPIRED,
    checks::TCB_INFO_ID,
    checks::QE_IDENTITY_ID,
    checks::FMSPC,
    checks::TCB_STATUS,
];

/// What the TD report is asked for.
const BY_CONTENT: &[CheckName] = &[
    names::POLICY_RESERVED,
    checks::TD_DEBUG,
    names::MEASUREMENT,
    checks::MRCONFIGID,
    checks::MROWNER,
    checks::MROWNERCONFIG,
    checks::MRSERVICETD,
    checks::TD_ATTRIBUTES,
    checks::XFAM,
    checks::RTMR,
    names::REPORT_DATA,
];

/// Judges a quote at the time `at`. A `test_root` (DER or PEM) is trusted as if it were Intel's; the
/// claims then say `TEST`. Collateral is Intel's in any case.
#[must_use]
pub fn verify(
    evidence: &TdxEvidence<'_>,
    policy: &TdxPolicy,
    test_root: Option<&[u8]>,
    at: Timestamp,
) -> Judgement<TdxClaims> {
    let mut ledger = Ledger::new(
        &[
            GENUINE,
            &[checks::COLLATERAL_MISSING],
            BY_COLLATERAL,
            &[checks::TCB_EVALUATION],
            BY_CONTENT,
        ]
        .concat(),
    );
    if policy.min_tcb_evaluation_data_number.is_none() {
        ledger.unset(checks::TCB_EVALUATION);
    }
    let collateral = read_collateral(&mut ledger, evidence.collateral);
    let quote = match Quote::parse(evidence.quote) {
        Ok(quote) => quote,
        Err(unreadable) => {
            if unreadable.malformed {
                ledger.malformed(unreadable.check, unreadable.detail);
            } else {
                ledger.record(unreadable.check, Err(unreadable.detail));
            }
            judge_other_tee(&mut ledger, evidence, collateral.as_ref(), policy, at);
            return ledger.close(None, "the quote could not be read");
        }
    };
    check_structure(&mut ledger, evidence.quote, &quote);
    let chain = read_chain(&mut ledger, &quote, at);
    let trust = check_signatures(&mut ledger, &quote, chain.as_ref(), test_root);
    let collateral = collateral.as_ref();
    let status = collateral.and_then(|collateral| {
        check_platform(&mut ledger, evidence, chain.as_ref(), collateral, policy, at)
    });
    let replayed = content::check(&mut ledger, &quote, evidence.event_log, policy);
    let genuine = ledger.all_passed(GENUINE);
    let claims = TdxClaims::new(&quote, trust, status, replayed);
    let debuggable = claims.debug;
    let nothing = "an earlier check failed, so there was nothing to compare";
    let mut judgement = Judgement { trust, debuggable, ..ledger.close(Some(claims), nothing) };
    if genuine && evidence.collateral.is_none() {
        judgement.verdict = Verdict::NoCollateral;
    }
    judgement
}

fn read_collateral(ledger: &mut Ledger, json: Option<&[u8]>) -> Option<Collateral> {
    let detail = match json.map(Collateral::parse) {
        Some(Ok(collateral)) => {
            ledger.record(checks::COLLATERAL_MISSING, Ok("collateral was given".into()));
            return Some(collateral);
        }
        Some(Err(why)) => {
            ledger.malformed(checks::COLLATERAL_MISSING, format!("collateral: {why}"));
            "the collateral could not be read"
        }
        None => {
            let detail = "no collateral was given: nothing says whether the platform is good";
            ledger.record(checks::COLLATERAL_MISSING, Err(detail.into()));
            "no collateral was given"
        }
    };
    for name in BY_COLLATERAL {
        ledger.not_done(*name, detail);
    }
    None
}

/// A quote of another kind of enclave is refused; its platform's status is told all the same.
fn judge_other_tee(
    ledger: &mut Ledger,
    evidence: &TdxEvidence<'_>,
    collateral: Option<&Collateral>,
    policy: &TdxPolicy,
    at: Timestamp,
) {
    let other =
        Header::parse(evidence.quote).is_some_and(|header| header.tee_type.get() != TEE_TDX);
    if let (true, Some(collateral)) = (other, collateral)
        && let Ok(platform) = tcb::judge(evidence.quote, collateral, at)
    {
        ledger.record(checks::TCB_STATUS, platform.check(policy, at));
    }
}

fn check_structure(ledger: &mut Ledger, bytes: &[u8], quote: &Quote<'_>) {
    ledger.record(names::LENGTH, Ok(format!("complete in {} bytes", bytes.len())));
    ledger.record(names::VERSION, Ok(format!("version {}", quote.header.version.get())));
    ledger.record(checks::TEE_TYPE, Ok("TDX".into()));
    ledger.record(checks::BODY, Ok("a TD report".into()));
    ledger.record(checks::ATT_KEY_TYPE, Ok("ECDSA P-256".into()));
    if !quote.header.vendor_is_intel() {
        let detail = "the quoting enclave's vendor is not Intel";
        ledger.record(checks::QE_IDENTITY_ID, Err(detail.into()));
    }
}

fn read_chain(ledger: &mut Ledger, quote: &Quote<'_>, at: Timestamp) -> Option<PckChain> {
    match PckChain::parse(quote) {
        Ok(chain) => {
            let detail = "three well-formed certificates";
            ledger.record(names::CERTIFICATE_PARSE, Ok(detail.into()));
            chain.check_dates(ledger, at);
            Some(chain)
        }
        Err(why) => {
            ledger.record(names::CERTIFICATE_PARSE, Err(why));
            None
        }
    }
}

/// Judges the quote's signatures, and says whose root they lead to, if to one that is trusted.
fn check_signatures(
    ledger: &mut Ledger,
    quote: &Quote<'_>,
    chain: Option<&PckChain>,
    test_root: Option<&[u8]>,
) -> Option<Trust> {
    platform::check_quote_signature(ledger, quote);
    platform::check_qe_binding(ledger, quote);
    let chain = chain?;
    let test_root = match test_root.map(Certificate::parse).transpose() {
        Ok(test_root) => test_root,
        Err(why) => {
            ledger.malformed(names::CERTIFICATE_PARSE, format!("test root: {why}"));
            return None;
        }
    };
    let root = chain
        .check_shape(test_root.as_ref())
        .and_then(|root| chain.check_signatures().map(|()| root));
    let detail = root.clone().map(|root| match root {
        Trust::Vendor(name) => format!("leads to {name}'s root"),
        Trust::Caller => "leads to a root that the caller named".into(),
        Trust::Test => "leads to the TEST root that was named, which proves nothing".into(),
    });
    ledger.record(names::CHAIN, detail);
    platform::check_qe_signature(ledger, quote, &chain.leaf);
    root.ok()
}

/// Judges the platform by its collateral. Each signature is checked by name, and again by `dcap-qvl` on
/// its way to the platform's status.
fn check_platform(
    ledger: &mut Ledger,
    evidence: &TdxEvidence<'_>,
    chain: Option<&PckChain>,
    collateral: &Collateral,
    policy: &TdxPolicy,
    at: Timestamp,
) -> Option<tcb::Platform> {
    collateral.check_contents(ledger, chain, at);
    collateral.check_signatures(ledger, chain);
    match tcb::judge(evidence.quote, collateral, at) {
        Ok(platform) => {
            ledger.record(checks::TCB_STATUS, platform.check(policy, at));
            if let Some(least) = policy.min_tcb_evaluation_data_number {
                ledger.record(checks::TCB_EVALUATION, platform.check_evaluation(least));
            }
            Some(platform)
        }
        Err(why) => {
            let named = |name: &CheckName| {
                *name != checks::TCB_STATUS && !ledger.all_passed(std::slice::from_ref(name))
            };
            if GENUINE.iter().chain(BY_COLLATERAL).any(named) {
                ledger.not_done(checks::TCB_STATUS, &format!("another check failed: {why}"));
            } else {
                ledger.record(checks::TCB_STATUS, Err(why));
            }
            None
        }
    }
}
