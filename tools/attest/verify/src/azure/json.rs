//! Azure's evidence as one JSON object, as Trustee's clients send it.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::snp::REPORT_LEN;
use crate::tpm::QuoteParts;

use super::AzureEvidence;
use super::hcl::{Hardware, HclReport};

/// Clients write base64 with and without padding.
const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);

/// Evidence that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Not the JSON that it should be.
    #[error("the evidence is not a JSON object of hcl_report, tpm_quote, and vcek or td_quote")]
    Json(#[from] serde_json::Error),
    /// Bytes in another spelling.
    #[error("{0} is neither a list of bytes nor hexadecimal nor base64")]
    Bytes(&'static str),
}

/// Whose hardware report a paravisor's report has, by its unsigned header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AzureHardware<'a> {
    /// An SEV-SNP report.
    Snp(&'a [u8; REPORT_LEN]),
    /// A TDREPORT.
    Tdx,
}

/// The parts of a JSON object, decoded.
#[derive(Clone, PartialEq, Debug)]
pub struct AzureFiles {
    hcl: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
    registers: Vec<u8>,
    vek: Option<Vec<u8>>,
    td_quote: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(alias = "report")]
    hcl_report: Bytes,
    #[serde(alias = "quote")]
    tpm_quote: Quote,
    vcek: Option<Bytes>,
    td_quote: Option<Bytes>,
}

#[derive(Deserialize)]
struct Quote {
    message: Bytes,
    signature: Bytes,
    pcrs: Vec<Bytes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Bytes {
    List(Vec<u8>),
    Text(String),
}

impl Bytes {
    fn decode(&self, name: &'static str) -> Result<Vec<u8>, EvidenceError> {
        let text = match self {
            Bytes::List(bytes) => return Ok(bytes.clone()),
            Bytes::Text(text) => text,
        };
        if text.starts_with("-----BEGIN") {
            return Ok(text.clone().into_bytes());
        }
        crate::hex::bytes_of(text)
            .ok()
            .or_else(|| URL_SAFE.decode(text).ok())
            .or_else(|| STANDARD.decode(text).ok())
            .ok_or(EvidenceError::Bytes(name))
    }
}

impl AzureFiles {
    /// Reads `{"hcl_report", "tpm_quote": {"message", "signature", "pcrs"}, "vcek" or "td_quote"}`. Bytes are lists
    /// of numbers, hexadecimal or base64. Other keys are passed over.
    ///
    /// # Errors
    /// See [`EvidenceError`].
    pub fn from_json(json: &[u8]) -> Result<Self, EvidenceError> {
        let Document { hcl_report, tpm_quote, vcek, td_quote } = serde_json::from_slice(json)?;
        let optional = |bytes: Option<Bytes>, name| bytes.map(|it| it.decode(name)).transpose();
        let mut registers = Vec::new();
        for value in &tpm_quote.pcrs {
            registers.extend(value.decode("tpm_quote.pcrs")?);
        }
        Ok(AzureFiles {
            hcl: hcl_report.decode("hcl_report")?,
            message: tpm_quote.message.decode("tpm_quote.message")?,
            signature: tpm_quote.signature.decode("tpm_quote.signature")?,
            registers,
            vek: optional(vcek, "vcek")?,
            td_quote: optional(td_quote, "td_quote")?,
        })
    }

    /// Whose hardware report is in the paravisor's report, if that can be read.
    #[must_use]
    pub fn hardware(&self) -> Option<AzureHardware<'_>> {
        match HclReport::parse(&self.hcl).ok()?.hardware {
            Hardware::Snp(report) => Some(AzureHardware::Snp(report)),
            Hardware::Tdx(_) => Some(AzureHardware::Tdx),
        }
    }

    /// The attestation structure that the TPM signed.
    #[must_use]
    pub fn quote_message(&self) -> &[u8] {
        &self.message
    }

    /// Length of all parts, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let optional = [&self.vek, &self.td_quote].map(|part| part.as_ref().map_or(0, Vec::len));
        let always = [&self.hcl, &self.message, &self.signature, &self.registers].map(Vec::len);
        always.iter().chain(&optional).sum()
    }

    /// The evidence in it.
    #[must_use]
    pub fn evidence(&self) -> AzureEvidence<'_> {
        AzureEvidence {
            hcl: &self.hcl,
            quote: Some(QuoteParts {
                message: &self.message,
                signature: &self.signature,
                registers: &self.registers,
            }),
            vek: self.vek.as_deref(),
            td_quote: self.td_quote.as_deref(),
            ..AzureEvidence::default()
        }
    }
}
