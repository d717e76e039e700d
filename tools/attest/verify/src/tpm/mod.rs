//! Quotes of TPM 2.0: signed statements of platform configuration registers (PCRs).
//!
//! The signature covers the attestation structure alone. Which registers it speaks of is in the signed
//! selection, and their values are known only through the signed digest: a list of values beside the quote
//! proves nothing of a register that is not selected.

mod attest;
pub mod checks;
mod eventlog;
mod key;
mod policy;
mod public;
mod reader;
mod registers;

use crate::judgement::Ledger;
use crate::names::CheckName;

pub(crate) use eventlog::EventLog;
pub(crate) use key::RsaKey;
pub use policy::{PcrPolicy, VTPM_PCRS};
pub(crate) use public::{PublicArea, rsassa_sha256};
pub(crate) use registers::Registers;

use attest::Quote;

/// The longest attestation structure that is read, in bytes.
pub(crate) const MAX_QUOTE: usize = 1024;

/// A quote with the values that it is said to be over.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuoteParts<'a> {
    /// TPMS_ATTEST, as the TPM returned it.
    pub message: &'a [u8],
    /// The signature: RSASSA-PKCS1-v1_5 with SHA-256, without a header.
    pub signature: &'a [u8],
    /// The values of the selected registers in ascending order, 32 bytes each, without gaps.
    pub registers: &'a [u8],
}

/// The checks of every quote.
pub(crate) const CHECKS: &[CheckName] = &[
    checks::QUOTE_MISSING,
    checks::QUOTE_PARSE,
    checks::QUOTE_MAGIC,
    checks::QUOTE_TYPE,
    checks::QUOTE_TRAILING,
    checks::QUOTE_SIGNATURE,
    checks::NONCE,
    checks::PCR_SELECTION,
    checks::PCR_DIGEST,
    checks::PCR,
];

/// Checks a quote by `key`, which somebody vouches for elsewhere, and returns the registers that it proves.
pub(crate) fn check(
    ledger: &mut Ledger,
    parts: Option<&QuoteParts<'_>>,
    key: Option<&RsaKey>,
    policy: &PcrPolicy,
) -> Option<Registers> {
    let Some(parts) = parts else {
        let why = "there is no quote: nothing says what booted, and nothing is fresh";
        ledger.record(checks::QUOTE_MISSING, Err(why.into()));
        return None;
    };
    ledger.record(checks::QUOTE_MISSING, Ok("there is a quote".into()));
    if let Some(key) = key {
        ledger.record(checks::QUOTE_SIGNATURE, key.check(parts.message, parts.signature));
    }
    let quote = match Quote::parse(parts.message) {
        Ok(quote) => quote,
        Err(fault) => {
            ledger.record(fault.check, Err(fault.detail));
            return None;
        }
    };
    ledger.record(checks::QUOTE_PARSE, Ok("one attestation structure".into()));
    ledger.record(checks::QUOTE_MAGIC, Ok("made inside of a TPM".into()));
    ledger.record(checks::QUOTE_TYPE, Ok("a quote".into()));
    ledger.record(checks::QUOTE_TRAILING, Ok("nothing follows".into()));
    ledger.condition(checks::NONCE, policy.nonce.as_deref(), |nonce| quote.check_nonce(nonce));
    let selected = quote.selected();
    ledger.record(
        checks::PCR_SELECTION,
        selected.clone().and_then(|selected| policy.check_selection(selected)),
    );
    let registers = selected.and_then(|selected| Registers::new(selected, parts.registers));
    let proven = registers.and_then(|registers| {
        let found = registers.digest();
        if found == quote.pcr_digest {
            Ok(registers)
        } else {
            Err("the values are not those of the signed digest".to_owned())
        }
    });
    match proven {
        Ok(registers) => {
            ledger.record(checks::PCR_DIGEST, Ok(format!("the values of {}", registers.selected)));
            if policy.pcrs.is_none() && policy.pcr_sets.is_none() {
                ledger.unset(checks::PCR);
            }
            if let Some(wanted) = policy.wanted() {
                ledger.record(checks::PCR, registers.check(wanted));
            }
            if let Some(sets) = &policy.pcr_sets {
                ledger.record(checks::PCR, registers.check_sets(sets));
            }
            Some(registers)
        }
        Err(why) => {
            ledger.record(checks::PCR_DIGEST, Err(why));
            None
        }
    }
}
