//! The names of the checks, and one sentence each on what a check means.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! check_names {
    ($($variant:ident $name:literal $sentence:literal,)*) => {
        /// What a check is called, in the order in which judgements list them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum CheckName {
            $(#[doc = $sentence] $variant,)*
        }

        impl CheckName {
            /// All names.
            pub const ALL: &'static [CheckName] = &[$(CheckName::$variant,)*];

            /// The name as output, documentation and audit records spell it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(CheckName::$variant => $name,)* }
            }

            /// What must hold for the check to pass.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self { $(CheckName::$variant => $sentence,)* }
            }
        }
    };
}

check_names! {
    Length "length" "The evidence is complete and as long as its kind says.",
    Version "version" "The format's version is one that this program knows and the policy lists.",
    TeeType "tee-type" "The quote comes from a trust domain, not from an SGX enclave.",
    Body "body" "The quote's body is a TD report of a known type and its exact size.",
    AttKeyType "att-key-type" "The attestation key is ECDSA over P-256.",
    SigAlgo "sig-algo" "The report says that it is signed with ECDSA over P-384 and SHA-384.",
    SignatureEncoding "signature-encoding" "Both halves of the signature are padded with zeros, and nothing follows them.",
    CertificateParse "certificate-parse" "Every certificate is one well-formed X.509 certificate.",
    Chain "chain" "The certificates lead, signature by signature, to a trusted root.",
    NotYetValid "not-yet-valid" "Nothing that vouches for the evidence begins after the time of the verification.",
    Expired "expired" "No certificate of the chain ended before the time of the verification.",
    VekExpired "vek-expired" "The chip's or provider's endorsement key certificate has not ended.",
    VekKeyType "vek-key-type" "The endorsement key is a P-384 key.",
    CrlMissing "crl-missing" "A revocation list is there when the policy requires one.",
    CrlIssuer "crl-issuer" "The revocation list is a full list of the root that issued the chain.",
    CrlSignature "crl-signature" "The revocation lists are signed by their issuers.",
    CrlExpired "crl-expired" "The revocation list is current.",
    Revoked "revoked" "No certificate of the chain is on the revocation list.",
    Signature "signature" "The endorsement key signed exactly these bytes of the report.",
    SigningKey "signing-key" "The key that the report names, VCEK or VLEK, is the certificate's kind and the policy lists it.",
    ProductMismatch "product-mismatch" "Root, endorsement key and report are of the same processor product.",
    HwidMismatch "hwid-mismatch" "The chip that reports is the chip that a VCEK certificate was issued to.",
    TcbOrder "tcb-order" "Every component of the reported TCB is at most the committed one, and that at most the current one.",
    TcbMismatch "tcb-mismatch" "The certificate was issued for exactly the reported TCB.",
    TcbMinimum "tcb-minimum" "Every component of the reported TCB is at least the policy's.",
    QuoteSignature "quote-signature" "The attestation key signed exactly these bytes of the quote.",
    QeBinding "qe-binding" "The quoting enclave's report names the attestation key.",
    QeSignature "qe-signature" "The platform's certificate key signed the quoting enclave's report.",
    CollateralMissing "collateral-missing" "TCB information, enclave identity and revocation lists are there to judge the platform by.",
    CollateralSignature "collateral-signature" "Intel signed exactly this text of the TCB information and of the enclave identity.",
    CollateralExpired "collateral-expired" "No part of the collateral ended before the time of the verification.",
    TcbInfoId "tcb-info-id" "The TCB information is about TDX.",
    QeIdentityId "qe-identity-id" "The enclave identity is that of the TD quoting enclave, and the enclave has it.",
    Fmspc "fmspc" "The TCB information is about this platform's model.",
    TcbStatus "tcb-status" "The platform's TCB status is one that the policy accepts.",
    PolicyInvalid "policy-invalid" "The policy can be read and understood in full.",
    PolicyReserved "policy-reserved" "Bits that the specification fixes have their values in the guest's policy or attributes.",
    ReservedNonzero "reserved-nonzero" "Fields that the report's version reserves are zero.",
    PolicyDebug "policy-debug" "The host cannot debug the guest.",
    TdDebug "td-debug" "The host cannot debug the trust domain.",
    PolicySmt "policy-smt" "The guest cannot run beside another hardware thread.",
    PolicyMigrateMa "policy-migrate-ma" "No migration agent can move the guest.",
    PolicySingleSocket "policy-single-socket" "The guest runs on one socket only.",
    Vmpl "vmpl" "The report was asked for from a privilege level that the policy lists.",
    Measurement "measurement" "What was launched is what the policy names.",
    Mrconfigid "mrconfigid" "MRCONFIGID is one that the policy names.",
    Mrowner "mrowner" "MROWNER is one that the policy names.",
    Mrownerconfig "mrownerconfig" "MROWNERCONFIG is one that the policy names.",
    TdAttributes "td-attributes" "The TD's attributes are a value that the policy names.",
    Xfam "xfam" "The TD's extended features (XFAM) are a value that the policy names.",
    Rtmr "rtmr" "The run-time measurement registers are what the policy names, and the event log gives them.",
    ReportData "report-data" "The guest put the expected data into the evidence.",
    HostData "host-data" "The host gave the guest the expected data at launch.",
    GuestSvn "guest-svn" "The guest's security version is at least the policy's.",
    IdKey "id-key" "The guest was launched with an ID block signed by a key that the policy lists.",
    AuthorKey "author-key" "The ID key was signed by an author key that the policy lists.",
}

impl fmt::Display for CheckName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for CheckName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
