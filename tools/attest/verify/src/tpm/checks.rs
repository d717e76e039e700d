//! The checks of TPM quotes.

use crate::names::check_names;

check_names! {
    QUOTE_MISSING "quote-missing" "There is a quote: the report of the platform alone says neither what booted nor when.",
    QUOTE_PARSE "quote-parse" "The quote is one well-formed attestation structure (TPMS_ATTEST).",
    QUOTE_MAGIC "quote-magic" "The quote begins with TPM_GENERATED, which the TPM lets nobody else sign.",
    QUOTE_TYPE "quote-type" "The attestation structure is a quote.",
    QUOTE_TRAILING "quote-trailing" "Nothing follows the attestation structure.",
    QUOTE_SIGNATURE "quote-signature" "The attestation key signed exactly these bytes of the quote.",
    NONCE [Fresh] "nonce" "The evidence has exactly the nonce that the policy names.",
    PCR_SELECTION "pcr-selection" "The signed selection is of one SHA-256 bank and has every register that the policy needs.",
    PCR_DIGEST "pcr-digest" "The values of the selected registers give the signed digest.",
    PCR [System] "pcr" "The registers have values that the policy names.",
}
