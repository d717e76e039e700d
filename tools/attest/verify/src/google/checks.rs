//! The checks of attestations of Google's virtual TPM.

use crate::names::check_names;

check_names! {
    AK_PUBLIC "ak-public" "The attestation key is an RSA key that signs nothing but what its TPM made.",
    AK_CERTIFICATE "ak-certificate" "The certificate is of exactly this attestation key.",
    AK_CHAIN "ak-chain" "The key's certificate leads, signature by signature, to one of Google's roots.",
    AK_DATES "ak-dates" "Every certificate of the key's chain is valid at the time of the verification.",
    EVENT_LOG "event-log" "The event log gives the proven values of every register that it speaks of.",
}
