//! Evidence as JSON, as an attestation carries it.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use kbs_types::Tee;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::snp_json;

/// What a guest has to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// An SEV-SNP guest's.
    Snp {
        /// The report, as the firmware gave it.
        report: Vec<u8>,
        /// The certificate table that the host gave with it (GHCB specification, "SNP Extended Guest
        /// Request"); empty when it gave none.
        certificates: Vec<u8>,
    },
    /// A TDX guest's.
    Tdx {
        /// The quote.
        quote: Vec<u8>,
        /// The event log (ACPI table CCEL's contents), if there is one.
        event_log: Option<Vec<u8>>,
    },
}

/// Evidence that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Another kind of processor.
    #[error("evidence of the kind \"{0}\" is not known here; \"snp\" and \"tdx\" are")]
    Kind(Tee),
    /// Not the JSON that it should be.
    #[error("the evidence is not that of the kind \"{kind}\"")]
    Json {
        /// The kind.
        kind: Tee,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A field is not base64.
    #[error("the field \"{field}\" of the evidence is not base64")]
    Base64 {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: base64::DecodeError,
    },
}

#[derive(Deserialize)]
struct TdxJson {
    quote: String,
    cc_eventlog: Option<String>,
}

/// The report as it is. What other clients send is in [`snp_json`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSnpJson {
    report: String,
    certificates: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SnpJson {
    Raw(RawSnpJson),
    Fields(Box<snp_json::SnpFields>),
}

impl Evidence {
    /// The kind of processor that it comes from.
    #[must_use]
    pub fn tee(&self) -> Tee {
        match self {
            Evidence::Snp { .. } => Tee::Snp,
            Evidence::Tdx { .. } => Tee::Tdx,
        }
    }

    /// As JSON. For SEV-SNP `{"report", "certificates"}` in URL-safe base64, for TDX
    /// `{"quote", "cc_eventlog"}` in standard base64 (as Trustee has it).
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Evidence::Snp { report, certificates } => json!({
                "report": BASE64_URL_SAFE_NO_PAD.encode(report),
                "certificates": BASE64_URL_SAFE_NO_PAD.encode(certificates),
            }),
            Evidence::Tdx { quote, event_log } => json!({
                "quote": BASE64_STANDARD.encode(quote),
                "cc_eventlog": event_log.as_ref().map(|log| BASE64_STANDARD.encode(log)),
            }),
        }
    }

    /// Reads what [`Evidence::to_json`] writes, and for SEV-SNP also what Trustee's clients send: the
    /// report field by field. Nothing is judged.
    ///
    /// # Errors
    /// See [`EvidenceError`].
    pub fn from_json(tee: Tee, json: &Value) -> Result<Self, EvidenceError> {
        let wrong = |source| EvidenceError::Json { kind: tee, source };
        match tee {
            Tee::Snp => match SnpJson::deserialize(json).map_err(wrong)? {
                SnpJson::Raw(raw) => Ok(Evidence::Snp {
                    report: decode("report", &BASE64_URL_SAFE_NO_PAD, &raw.report)?,
                    certificates: decode(
                        "certificates",
                        &BASE64_URL_SAFE_NO_PAD,
                        &raw.certificates,
                    )?,
                }),
                SnpJson::Fields(fields) => Ok(Evidence::Snp {
                    report: fields.report(),
                    certificates: fields.certificate_table(),
                }),
            },
            Tee::Tdx => {
                let TdxJson { quote, cc_eventlog } = TdxJson::deserialize(json).map_err(wrong)?;
                let log = cc_eventlog.map(|log| decode("cc_eventlog", &BASE64_STANDARD, &log));
                Ok(Evidence::Tdx {
                    quote: decode("quote", &BASE64_STANDARD, &quote)?,
                    event_log: log.transpose()?,
                })
            }
            other => Err(EvidenceError::Kind(other)),
        }
    }
}

fn decode(
    field: &'static str,
    alphabet: &base64::engine::GeneralPurpose,
    text: &str,
) -> Result<Vec<u8>, EvidenceError> {
    alphabet.decode(text).map_err(|source| EvidenceError::Base64 { field, source })
}

#[cfg(test)]
mod tests {
    use casemate_test_support::evidence;
    use proptest::prelude::*;
    use sev::firmware::guest::AttestationReport;
    use sev::firmware::host::{CertTableEntry, CertType};
    use sev::parser::ByteParser as _;

    use super::*;

    const REAL: [&str; 5] = [
        "dstack-milan",
        "go-sev-guest-milan",
        "oak-genoa_oc",
        "oak-milan_oc_release",
        "oak-turin_oc",
    ];

    /// As Trustee's clients make it: the crate `sev` reads the report, serde writes its fields.
    fn trustee(report: &[u8], certificates: &[CertTableEntry]) -> Value {
        let report = AttestationReport::from_bytes(report).unwrap();
        json!({"attestation_report": report, "cert_chain": certificates})
    }

    #[test]
    fn real_reports_come_back_byte_for_byte_from_trustees_form() {
        for name in REAL {
            let report = evidence::file(&format!("snp/{name}/report.bin")).unwrap();
            let json = trustee(&report, &[]);
            let expected = Evidence::Snp { report, certificates: vec![] };
            assert_eq!(Evidence::from_json(Tee::Snp, &json).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn certificates_come_back_as_the_table_that_sev_makes_of_them() {
        let report = evidence::file("snp/oak-turin_oc/report.bin").unwrap();
        let entries = [
            (CertType::VCEK, b"one".to_vec()),
            (CertType::ASK, b"two2".to_vec()),
            (CertType::ARK, b"three".to_vec()),
            (CertType::CRL, vec![]),
        ]
        .map(|(cert_type, data)| CertTableEntry { cert_type, data });
        let json = trustee(&report, &entries);
        let Evidence::Snp { certificates, .. } = Evidence::from_json(Tee::Snp, &json).unwrap()
        else {
            panic!("not SEV-SNP")
        };
        let made = CertTableEntry::cert_table_to_vec_bytes(&entries).unwrap();
        let (table, rest) = made.split_at(certificates.len());
        assert_eq!(table, certificates);
        assert!(rest.iter().all(|byte| *byte == 0), "only padding to whole pages");
    }

    #[test]
    fn what_is_written_is_read() {
        for evidence in [
            Evidence::Snp { report: vec![1, 2, 3], certificates: vec![4] },
            Evidence::Tdx { quote: vec![1, 2, 3], event_log: None },
            Evidence::Tdx { quote: vec![], event_log: Some(vec![255; 100]) },
        ] {
            let json = evidence.to_json();
            assert_eq!(Evidence::from_json(evidence.tee(), &json).unwrap(), evidence);
        }
    }

    #[test]
    fn other_things_are_errors() {
        let report = json!({"report": "AA", "certificates": ""});
        assert!(Evidence::from_json(Tee::Sgx, &report).is_err());
        for json in [
            json!(null),
            json!({}),
            json!({"report": "AA"}),
            json!({"report": "A", "certificates": ""}),
            json!({"report": "AA", "certificates": "", "more": 1}),
            json!({"report": [0], "certificates": ""}),
            json!({"attestation_report": {}, "cert_chain": null}),
        ] {
            assert!(Evidence::from_json(Tee::Snp, &json).is_err(), "{json}");
        }
        for json in [json!({}), json!({"quote": "_-"}), json!({"quote": 1})] {
            assert!(Evidence::from_json(Tee::Tdx, &json).is_err(), "{json}");
        }
    }

    proptest! {
        /// Any change of Trustee's form is an error or another report, never a panic.
        #[test]
        fn changed_fields_are_read_or_refused(at in 0_usize..30, number in any::<u64>()) {
            let report = evidence::file("snp/oak-genoa_oc/report.bin").unwrap();
            let mut json = trustee(&report, &[]);
            let fields = json["attestation_report"].as_object_mut().unwrap();
            let name = fields.keys().nth(at % fields.len()).unwrap().clone();
            fields[&name] = json!(number);
            if let Ok(Evidence::Snp { report: other, .. }) = Evidence::from_json(Tee::Snp, &json) {
                prop_assert_eq!(other.len(), report.len());
            }
        }
    }
}
