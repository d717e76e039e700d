//! Evidence of an attestation, as the protocol carries it.

use casemate_protocol::{Evidence, EvidenceError};
use casemate_verify::azure::{self, AzureFiles, AzureHardware};
use kbs_types::Tee;
use ring::digest::{SHA384, digest};
use serde_json::{Map, Value};

use crate::seal::hex;

/// The kinds of guests whose evidence can be judged.
pub(crate) const KINDS: [Tee; 4] = [Tee::Snp, Tee::Tdx, Tee::AzSnpVtpm, Tee::AzTdxVtpm];

/// Evidence of one guest.
#[derive(Clone, PartialEq, Debug)]
pub enum GuestEvidence {
    /// A report or quote that the guest's own kernel got.
    Bare(Evidence),
    /// A paravisor's report and a quote of its virtual TPM.
    Azure(AzureFiles),
}

/// Evidence that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GuestEvidenceError {
    /// That of a bare guest.
    #[error(transparent)]
    Bare(#[from] EvidenceError),
    /// That of an Azure guest.
    #[error(transparent)]
    Azure(#[from] azure::EvidenceError),
    /// The session began with another kind.
    #[error("the evidence is not that of a guest of the kind \"{0}\", which the request named")]
    Kind(Tee),
    /// Additional evidence is not the JSON that it should be.
    #[error("the additional evidence is not a JSON object of one member per kind of device")]
    Devices(#[source] serde_json::Error),
}

impl GuestEvidence {
    /// Reads the primary evidence of a guest of the kind `tee`. Nothing is judged.
    ///
    /// # Errors
    /// See [`GuestEvidenceError`].
    pub fn from_json(tee: Tee, json: &Value) -> Result<Self, GuestEvidenceError> {
        if !matches!(tee, Tee::AzSnpVtpm | Tee::AzTdxVtpm) {
            return Ok(GuestEvidence::Bare(Evidence::from_json(tee, json)?));
        }
        let files = AzureFiles::from_json(json.to_string().as_bytes())?;
        match (files.hardware(), tee) {
            (Some(AzureHardware::Snp(_)), Tee::AzTdxVtpm)
            | (Some(AzureHardware::Tdx), Tee::AzSnpVtpm) => Err(GuestEvidenceError::Kind(tee)),
            // A report that cannot be read is judged as what it is.
            _ => Ok(GuestEvidence::Azure(files)),
        }
    }

    /// What audit records call the evidence: SHA-384 of the report or quote, for Azure of the signed part of
    /// the TPM's quote.
    pub(crate) fn digest(&self) -> String {
        let bytes = match self {
            GuestEvidence::Bare(Evidence::Snp { report, .. }) => report,
            GuestEvidence::Bare(Evidence::Tdx { quote, .. }) => quote,
            GuestEvidence::Azure(files) => files.quote_message(),
        };
        hex(digest(&SHA384, bytes).as_ref())
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            GuestEvidence::Bare(Evidence::Snp { report, certificates }) => {
                report.len() + certificates.len()
            }
            GuestEvidence::Bare(Evidence::Tdx { quote, event_log }) => {
                quote.len() + event_log.as_ref().map_or(0, Vec::len)
            }
            GuestEvidence::Azure(files) => files.size(),
        }
    }
}

/// The kinds of devices that additional evidence is of, in its order; none when it is empty.
pub(crate) fn devices(additional: &str) -> Result<Vec<String>, GuestEvidenceError> {
    if additional.is_empty() {
        return Ok(Vec::new());
    }
    let devices: Map<String, Value> =
        serde_json::from_str(additional).map_err(GuestEvidenceError::Devices)?;
    Ok(devices.into_iter().map(|(kind, _)| kind).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_named_by_their_kind() {
        for none in ["", "{}"] {
            assert!(devices(none).unwrap().is_empty());
        }
        assert_eq!(devices(r#"{"nvidia": ["gpu", {}]}"#).unwrap(), ["nvidia"]);
        for wrong in ["[]", "null", "x", "\"\"", "{} {}"] {
            assert!(devices(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn evidence_of_another_kind_is_refused() {
        let json = json!({"report": "", "certificates": ""});
        assert!(GuestEvidence::from_json(Tee::Snp, &json).is_ok());
        for tee in [Tee::Tdx, Tee::AzSnpVtpm, Tee::AzTdxVtpm, Tee::Sgx] {
            assert!(GuestEvidence::from_json(tee, &json).is_err(), "{tee}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = devices(&text);
        }
    }
}
