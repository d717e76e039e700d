//! The checks of SEV-SNP reports, beside those of several kinds.

use crate::names::check_names;

check_names! {
    SIG_ALGO "sig-algo" "The report says that it is signed with ECDSA over P-384 and SHA-384.",
    SIGNATURE_ENCODING "signature-encoding" "Both halves of the signature are padded with zeros, and nothing follows them.",
    VEK_EXPIRED "vek-expired" "The chip's or provider's endorsement key certificate has not ended.",
    VEK_KEY_TYPE "vek-key-type" "The endorsement key is a P-384 key.",
    CRL_MISSING "crl-missing" "A revocation list is there when the policy requires one.",
    SIGNATURE [Platform] "signature" "The endorsement key signed exactly these bytes of the report.",
    SIGNING_KEY "signing-key" "The key that the report names, VCEK or VLEK, is the certificate's kind and the policy lists it.",
    PRODUCT_MISMATCH "product-mismatch" "Root, endorsement key and report are of the same processor product.",
    HWID_MISMATCH "hwid-mismatch" "The chip that reports is the chip that a VCEK certificate was issued to.",
    TCB_ORDER "tcb-order" "Every component of the reported TCB is at most the committed one, and that at most the current one.",
    TCB_MISMATCH [Platform] "tcb-mismatch" "The certificate was issued for exactly the reported TCB.",
    TCB_MINIMUM "tcb-minimum" "Every component of the reported TCB is at least the policy's.",
    RESERVED_NONZERO "reserved-nonzero" "Fields that the report's version reserves are zero.",
    POLICY_DEBUG "policy-debug" "The host cannot debug the guest.",
    POLICY_SMT "policy-smt" "The guest cannot run beside another hardware thread.",
    POLICY_MIGRATE_MA "policy-migrate-ma" "No migration agent can move the guest.",
    POLICY_SINGLE_SOCKET "policy-single-socket" "The guest runs on one socket only.",
    VMPL "vmpl" "The report was asked for from a privilege level that the policy lists.",
    HOST_DATA "host-data" "The host gave the guest the expected data at launch.",
    GUEST_SVN "guest-svn" "The guest's security version is at least the policy's.",
    ID_KEY "id-key" "The guest was launched with an ID block signed by a key that the policy lists.",
    AUTHOR_KEY "author-key" "The ID key was signed by an author key that the policy lists.",
}
