//! The checks of documents of Nitro enclaves.

use crate::names::check_names;

check_names! {
    CERT_EXPIRED "cert-expired" "Every certificate of the chain is valid at the time of the verification.",
    DEBUG_MODE "debug-mode" "The enclave is in production mode: its first three registers are not zero.",
}
