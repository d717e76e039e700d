//! The checks of TDX quotes, beside those of several kinds.

use crate::names::check_names;

check_names! {
    TEE_TYPE "tee-type" "The quote comes from a trust domain, not from an SGX enclave.",
    BODY "body" "The quote's body is a TD report of a known type and its exact size.",
    ATT_KEY_TYPE "att-key-type" "The attestation key is ECDSA over P-256.",
    QUOTE_SIGNATURE [Platform] "quote-signature" "The attestation key signed exactly these bytes of the quote.",
    QE_BINDING [Platform] "qe-binding" "The quoting enclave's report names the attestation key.",
    QE_SIGNATURE [Platform] "qe-signature" "The platform's certificate key signed the quoting enclave's report.",
    COLLATERAL_MISSING "collateral-missing" "TCB information, enclave identity and revocation lists are there to judge the platform by.",
    COLLATERAL_SIGNATURE "collateral-signature" "Intel signed exactly this text of the TCB information and of the enclave identity.",
    COLLATERAL_EXPIRED "collateral-expired" "No part of the collateral ended before the time of the verification.",
    TCB_INFO_ID "tcb-info-id" "The TCB information is about TDX.",
    QE_IDENTITY_ID "qe-identity-id" "The enclave identity is that of the TD quoting enclave, and the enclave has it.",
    FMSPC "fmspc" "The TCB information is about this platform's model.",
    TCB_STATUS [Platform] "tcb-status" "The platform's TCB status is one that the policy accepts.",
    TCB_EVALUATION "tcb-evaluation" "Intel's evaluation of the platform is at least as new as the policy asks for.",
    TD_DEBUG "td-debug" "The host cannot debug the trust domain.",
    MRCONFIGID "mrconfigid" "MRCONFIGID is one that the policy names.",
    MROWNER "mrowner" "MROWNER is one that the policy names.",
    MROWNERCONFIG "mrownerconfig" "MROWNERCONFIG is one that the policy names.",
    MRSERVICETD "mrservicetd" "No service TD is bound, or the bound ones are those that the policy names.",
    TD_ATTRIBUTES "td-attributes" "The TD's attributes are safe, a value that the policy names, and without a bit that it does not allow.",
    XFAM "xfam" "The TD's extended features (XFAM) are a value that the policy names, and without a bit that it does not allow.",
    RTMR [System] "rtmr" "The run-time measurement registers are what the policy names, and the event log gives them.",
}
