//! The names of the checks, and one sentence each on what a check means.

use std::fmt;

use serde::{Serialize, Serializer};

/// A question about a guest that evidence answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Is the platform genuine, and its firmware of a version that is accepted?
    Platform,
    /// Which firmware did the guest start with?
    Firmware,
    /// Which system did the firmware start?
    System,
    /// Was the evidence made for the one who judges it?
    Fresh,
}

impl Question {
    /// All of them.
    pub const ALL: [Question; 4] =
        [Question::Platform, Question::Firmware, Question::System, Question::Fresh];

    /// As output and audit records spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Question::Platform => "platform",
            Question::Firmware => "firmware",
            Question::System => "system",
            Question::Fresh => "fresh",
        }
    }
}

/// A check's name. Each kind of evidence declares its own with `check_names`; those of several kinds
/// are here.
#[derive(Clone, Copy, Debug)]
pub struct CheckName {
    name: &'static str,
    sentence: &'static str,
    question: Option<Question>,
}

impl CheckName {
    pub(crate) const fn new(
        name: &'static str,
        sentence: &'static str,
        question: Option<Question>,
    ) -> Self {
        CheckName { name, sentence, question }
    }

    /// The name as output, documentation and audit records spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.name
    }

    /// What must hold for the check to pass.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        self.sentence
    }

    /// The question that the check decides, if it alone can.
    #[must_use]
    pub fn question(self) -> Option<Question> {
        self.question
    }
}

impl PartialEq for CheckName {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for CheckName {}

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

/// Declares checks, `CONSTANT [Question] "name" "sentence"`, and the list `NAMES` of them.
macro_rules! check_names {
    ($($constant:ident $([$question:ident])? $name:literal $sentence:literal,)*) => {
        $(
            #[doc = $sentence]
            pub const $constant: $crate::names::CheckName = $crate::names::CheckName::new(
                $name,
                $sentence,
                $crate::names::check_names!(@question $($question)?),
            );
        )*

        /// The names that are declared here.
        pub const NAMES: &[$crate::names::CheckName] = &[$($constant,)*];
    };
    (@question) => { None };
    (@question $question:ident) => { Some($crate::names::Question::$question) };
}
pub(crate) use check_names;

check_names! {
    LENGTH "length" "The evidence is complete and as long as its kind says.",
    VERSION "version" "The format's version is one that this program knows and the policy lists.",
    CERTIFICATE_PARSE "certificate-parse" "Every certificate is one well-formed X.509 certificate.",
    CHAIN [Platform] "chain" "The certificates lead, signature by signature, to a trusted root.",
    NOT_YET_VALID "not-yet-valid" "Nothing that vouches for the evidence begins after the time of the verification.",
    EXPIRED "expired" "No certificate of the chain ended before the time of the verification.",
    CRL_ISSUER "crl-issuer" "The revocation list is a full list of the root that issued the chain.",
    CRL_SIGNATURE "crl-signature" "The revocation lists are signed by their issuers.",
    CRL_EXPIRED "crl-expired" "The revocation list is current.",
    REVOKED "revoked" "No certificate of the chain is on the revocation list.",
    SIGNATURE [Platform] "signature" "The certified key signed exactly these bytes of the evidence.",
    PARSE "parse" "The evidence is one well-formed structure of its kind, and nothing follows it.",
    COSE_ALGORITHM "cose-algorithm" "The protected header names the algorithm of this kind of evidence.",
    POLICY_INVALID "policy-invalid" "The policy can be read and understood in full.",
    POLICY_RESERVED "policy-reserved" "Bits that the specification fixes have their values in the guest's policy or attributes.",
    MEASUREMENT [Firmware] "measurement" "What was launched is what the policy names.",
    REPORT_DATA [Fresh] "report-data" "The guest put the expected data into the evidence.",
}
