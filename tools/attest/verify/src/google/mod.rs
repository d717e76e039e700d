//! Attestations of the virtual TPM of Google's machines.
//!
//! The TPM is the host's: such an attestation proves a machine of Google's and what it booted, not that its
//! memory is encrypted. It answers nothing about the platform; a report or quote of the processor does.

pub mod checks;
mod policy;
mod proto;

use serde::Serialize;
use x509_cert::der::asn1::ObjectIdentifier;

use crate::judgement::{Judgement, Ledger, Trust};
use crate::names::{self, CheckName};
use crate::time::Timestamp;
use crate::tpm::{self, EventLog, PublicArea, QuoteParts, Registers, RsaKey};
use crate::x509::Certificate;

pub use policy::GooglePolicy;
use proto::{Attestation, Quote};

/// Google's roots for attestation keys; sources: the certificates that the authority information of issued keys
/// names, `tpm_ek_root_1.crt` (until 2118) and `EK/AK CA Root` (until 2122) of Google's public key site.
const ROOTS: [&[u8]; 2] = [
    include_bytes!("../../roots/google-tpm-ek-v1.der"),
    include_bytes!("../../roots/google-ek-ak.der"),
];
/// Subjects of keys have their names there alone, so that the extension is critical (RFC 5280, section 4.1.2.6).
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
/// TPM_ALG_SHA256.
const SHA256_BANK: u64 = 0x0b;
/// The longest attestation that is read.
const MAX_ATTESTATION: usize = 1 << 20;
/// Certificates that an attestation or the caller may add.
const MAX_INTERMEDIATES: usize = 8;

/// What an attestation says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct GoogleClaims {
    /// `"google-vtpm"`.
    pub platform: &'static str,
    /// The registers that the quote proves.
    pcrs: Option<Registers>,
}

const ALWAYS: &[CheckName] = &[
    names::PARSE,
    checks::AK_PUBLIC,
    checks::AK_CERTIFICATE,
    checks::AK_CHAIN,
    checks::AK_DATES,
    checks::EVENT_LOG,
];

/// Judges an attestation at the time `at`. `intermediates` (DER or PEM) are the certificates between the key's and
/// a root, beside those in the attestation.
#[must_use]
pub fn verify(
    bytes: &[u8],
    intermediates: &[&[u8]],
    policy: &GooglePolicy,
    at: Timestamp,
) -> Judgement<GoogleClaims> {
    let mut ledger = Ledger::new(&[ALWAYS, tpm::CHECKS].concat());
    let read = Some(bytes).filter(|bytes| bytes.len() <= MAX_ATTESTATION);
    let Some(attestation) = read.and_then(Attestation::parse) else {
        let why = format!("{} bytes are not a message of this type", bytes.len());
        ledger.malformed(names::PARSE, why);
        return ledger.close(None, "the attestation could not be read");
    };
    ledger.record(names::PARSE, Ok(format!("{} bytes", bytes.len())));
    let public = PublicArea::parse(attestation.ak_public).and_then(|area| area.signing_key());
    let public = match public {
        Ok(key) => {
            ledger.record(checks::AK_PUBLIC, Ok("a restricted RSA key for signatures".into()));
            Some(key)
        }
        Err(why) => {
            ledger.record(checks::AK_PUBLIC, Err(why));
            None
        }
    };
    let trust = check_key(&mut ledger, &attestation, intermediates, public.as_ref(), at);
    let registers = check_quote(&mut ledger, &attestation, public.as_ref(), policy);
    check_log(&mut ledger, attestation.event_log, registers.as_ref());
    let claims = GoogleClaims { platform: "google-vtpm", pcrs: registers };
    let nothing = "an earlier check failed, so there was nothing to compare";
    Judgement { trust, ..ledger.close(Some(claims), nothing) }
}

/// Checks that the key's certificate is its own and leads to one of Google's roots.
fn check_key(
    ledger: &mut Ledger,
    attestation: &Attestation<'_>,
    more: &[&[u8]],
    public: Option<&RsaKey>,
    at: Timestamp,
) -> Option<Trust> {
    let certificate = match Certificate::parse(attestation.ak_certificate) {
        Ok(certificate) => certificate,
        Err(why) => {
            ledger.record(checks::AK_CERTIFICATE, Err(why));
            return None;
        }
    };
    if let Some(public) = public {
        let same = certificate.rsa_key().is_some_and(|(modulus, exponent)| {
            RsaKey::new(&modulus, &exponent).is_ok_and(|key| key == *public)
        });
        ledger.record(
            checks::AK_CERTIFICATE,
            if same {
                Ok("of this key".into())
            } else {
                Err("the certificate is of another key than the attestation's".into())
            },
        );
    }
    let chain = chain(&certificate, &attestation.intermediates, more);
    let trusted = chain.is_ok();
    let detail = chain
        .as_ref()
        .map_err(String::clone)
        .map(|chain| format!("leads to \"{}\"", chain.last().unwrap_or(&certificate).shown_name()));
    ledger.record(checks::AK_CHAIN, detail);
    for certificate in chain.iter().flatten().chain([&certificate]) {
        let dates = certificate.dates(at);
        if !dates.begun || dates.ended {
            let (name, begin, end) = (certificate.shown_name(), dates.begin, dates.end);
            let detail = format!("\"{name}\" is valid from {begin} to {end}; it is {at}");
            ledger.record(checks::AK_DATES, Err(detail));
        }
    }
    if trusted {
        ledger.record(checks::AK_DATES, Ok("every certificate is valid".into()));
    }
    trusted.then_some(Trust::Vendor("Google"))
}

/// The issuers of a certificate up to a root that is built in. The order in which certificates came says nothing.
fn chain(leaf: &Certificate, own: &[&[u8]], more: &[&[u8]]) -> Result<Vec<Certificate>, String> {
    leaf.check_leaf().map_err(|why| format!("the key's certificate {why}"))?;
    leaf.check_critical_but(&[SUBJECT_ALT_NAME])
        .map_err(|why| format!("the key's certificate {why}"))?;
    if own.len() + more.len() > MAX_INTERMEDIATES {
        return Err(format!("more than {MAX_INTERMEDIATES} certificates"));
    }
    let parse = |der: &&[u8]| Certificate::parse(der);
    let roots: Vec<Certificate> = ROOTS.iter().filter_map(|der| parse(der).ok()).collect();
    let mut pool = own.iter().chain(more).map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut chain: Vec<Certificate> = Vec::new();
    loop {
        let below = chain.last().unwrap_or(leaf);
        let authorities = u8::try_from(chain.len()).unwrap_or(u8::MAX);
        let issues = |issuer: &Certificate| {
            below
                .check_issued_by(issuer)
                .and_then(|()| issuer.check_authority(authorities))
                .and_then(|()| issuer.check_critical())
        };
        if let Some(root) = roots.iter().find(|root| issues(root).is_ok()) {
            chain.push(Certificate::parse(&root.der)?);
            return Ok(chain);
        }
        let next = pool.iter().position(|issuer| issues(issuer).is_ok()).ok_or_else(|| {
            format!(
                "no certificate here, and none of Google's roots, issued \"{}\"",
                below.shown_name()
            )
        })?;
        // Taken out: a chain that leads in a circle ends.
        chain.push(pool.swap_remove(next));
    }
}

/// Checks the quote of the SHA-256 bank; quotes of other banks decide nothing.
fn check_quote(
    ledger: &mut Ledger,
    attestation: &Attestation<'_>,
    key: Option<&RsaKey>,
    policy: &GooglePolicy,
) -> Option<Registers> {
    let mut quotes = attestation.quotes.iter().filter(|quote| quote.bank == SHA256_BANK);
    let quote = quotes.next().filter(|_| quotes.next().is_none());
    let values: Vec<u8> = quote
        .iter()
        .flat_map(|quote| quote.registers.iter())
        .flat_map(|(_, value)| *value)
        .copied()
        .collect();
    let parts = quote.map(|Quote { message, signature, .. }| QuoteParts {
        message,
        signature: tpm::rsassa_sha256(signature).unwrap_or_default(),
        registers: &values,
    });
    let registers = tpm::check(ledger, parts.as_ref(), key, &policy.tpm)?;
    let listed = quote.is_some_and(|quote| {
        quote
            .registers
            .iter()
            .all(|(number, value)| registers.get(*number).is_some_and(|it| it == **value))
    });
    if !listed {
        let why = "the registers are not listed under their numbers";
        ledger.record(tpm::checks::PCR_DIGEST, Err(why.into()));
        return None;
    }
    Some(registers)
}

fn check_log(ledger: &mut Ledger, log: Option<&[u8]>, registers: Option<&Registers>) {
    let Some(log) = log else { return ledger.unset(checks::EVENT_LOG) };
    let Some(registers) = registers else { return };
    let finding = EventLog::parse(log).and_then(|log| log.replay_sha256()).and_then(|replayed| {
        for (number, value) in &replayed {
            match registers.get(*number) {
                Some(proven) if proven == *value => {}
                Some(_) => return Err(format!("the event log gives another PCR {number}")),
                None => {
                    return Err(format!(
                        "the event log speaks of PCR {number}, which is not proven"
                    ));
                }
            }
        }
        Ok(format!("the event log gives {} registers", replayed.len()))
    });
    ledger.record(checks::EVENT_LOG, finding);
}
