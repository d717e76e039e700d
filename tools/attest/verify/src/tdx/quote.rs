//! The quote's bytes (Intel TDX DCAP quoting library API, appendix "Quote Format").

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::little_endian::Reader;
use crate::names::{self, CheckName};

use super::checks;

/// The quoting enclave vendor that this program knows: Intel.
const INTEL_QE_VENDOR: [u8; 16] = dcap_qvl::INTEL_QE_VENDOR_ID;
pub(crate) const TEE_TDX: u32 = 0x81;
const HEADER_LEN: usize = 48;
const TD_REPORT_10_LEN: usize = 584;
const TD_REPORT_15_LEN: usize = 648;
/// MRSERVICETD within a TD report of version 1.5: after the fields of 1.0 and TEE_TCB_SVN_2.
const MRSERVICETD: usize = TD_REPORT_10_LEN + 16;
const TD_REPORT_15_EX_LEN: usize = 885;

/// The first 48 bytes.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) version: U16,
    pub(crate) att_key_type: U16,
    pub(crate) tee_type: U32,
    reserved: [u8; 4],
    pub(crate) qe_vendor: [u8; 16],
    user_data: [u8; 20],
}

/// The TD report's fields that all body types share; longer bodies append to it.
#[derive(Clone, FromBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct TdReport {
    pub tee_tcb_svn: [u8; 16],
    pub mrseam: [u8; 48],
    pub mrsignerseam: [u8; 48],
    pub seam_attributes: [u8; 8],
    pub td_attributes: [u8; 8],
    pub xfam: [u8; 8],
    pub mrtd: [u8; 48],
    pub mrconfigid: [u8; 48],
    pub mrowner: [u8; 48],
    pub mrownerconfig: [u8; 48],
    pub rtmr: [[u8; 48]; 4],
    pub report_data: [u8; 64],
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);
const _: () = assert!(size_of::<TdReport>() == TD_REPORT_10_LEN);
const _: () = assert!(std::mem::offset_of!(TdReport, mrtd) == 136);
const _: () = assert!(std::mem::offset_of!(TdReport, report_data) == 520);

/// The quoting enclave's report (SGX REPORT body), 384 bytes.
pub(crate) const QE_REPORT_LEN: usize = 384;

/// A quote, taken apart.
pub(crate) struct Quote<'a> {
    pub(crate) header: &'a Header,
    pub(crate) report: &'a TdReport,
    /// The measurement of bound service TDs, in bodies of version 1.5.
    pub(crate) mrservicetd: Option<&'a [u8; 48]>,
    /// What the attestation key signed.
    pub(crate) signed: &'a [u8],
    pub(crate) auth: Auth<'a>,
    pub(crate) qe: QeReport<'a>,
}

/// The attestation key and its signature.
pub(crate) struct Auth<'a> {
    pub(crate) signature: &'a [u8; 64],
    /// x and y.
    pub(crate) key: &'a [u8; 64],
    kind: u16,
    certification: &'a [u8],
}

/// The quoting enclave's report, signed by the platform's key.
pub(crate) struct QeReport<'a> {
    pub(crate) report: &'a [u8; QE_REPORT_LEN],
    pub(crate) signature: &'a [u8; 64],
    pub(crate) auth_data: &'a [u8],
    /// The kind of `certificates`; 5 is a chain in PEM.
    pub(crate) certification_type: u16,
    pub(crate) certificates: &'a [u8],
}

/// Why a quote cannot be taken apart.
pub(crate) struct Unreadable {
    pub(crate) check: CheckName,
    pub(crate) detail: String,
    /// Whether this is no quote at all, or a piece of one.
    pub(crate) malformed: bool,
}

fn fault(check: CheckName, detail: String) -> Unreadable {
    Unreadable { check, detail, malformed: false }
}

impl Header {
    pub(crate) fn parse(bytes: &[u8]) -> Option<&Self> {
        Header::ref_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// Whether this can be the head of any quote: it is Intel's, or it says that it is of a TD.
    fn is_a_quote(&self) -> bool {
        self.vendor_is_intel()
            || ((4..=5).contains(&self.version.get()) && self.tee_type.get() == TEE_TDX)
    }

    pub(crate) fn vendor_is_intel(&self) -> bool {
        self.qe_vendor == INTEL_QE_VENDOR
    }
}

/// What a quote says of its TD. Whether anybody signed it has not been looked at.
#[must_use]
pub fn td_report(quote: &[u8]) -> Option<&TdReport> {
    Quote::parse(quote).ok().map(|quote| quote.report)
}

impl<'a> Quote<'a> {
    /// Takes a quote apart. Bytes after it are allowed and never read; the lengths within must fit
    /// exactly.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let truncated = || Unreadable {
            check: names::LENGTH,
            detail: format!("the quote is not complete: {} bytes", bytes.len()),
            malformed: true,
        };
        let mut reader = Reader(bytes);
        let header = Header::parse(bytes).ok_or_else(truncated)?;
        reader.skip(HEADER_LEN).ok_or_else(truncated)?;
        check_header(header)?;
        let (body_type, body_len) = match header.version.get() {
            4 => (2, TD_REPORT_10_LEN),
            _ => {
                let body_type = reader.u16().ok_or_else(truncated)?;
                let size = reader.u32().ok_or_else(truncated)?;
                (body_type, usize::try_from(size).unwrap_or(usize::MAX))
            }
        };
        let expected = match body_type {
            2 => TD_REPORT_10_LEN,
            3 => TD_REPORT_15_LEN,
            4 => TD_REPORT_15_EX_LEN,
            other => {
                let detail = format!("body type {other} is not a TD report (2, 3 or 4)");
                return Err(fault(checks::BODY, detail));
            }
        };
        if body_len != expected {
            let detail = format!("a body of type {body_type} has {expected} bytes, not {body_len}");
            return Err(fault(checks::BODY, detail));
        }
        let body = reader.take(body_len).ok_or_else(truncated)?;
        let (report, _) = TdReport::ref_from_prefix(body).map_err(|_| truncated())?;
        let mrservicetd = body.get(MRSERVICETD..).and_then(<[u8]>::first_chunk);
        let signed = bytes.get(..bytes.len() - reader.0.len()).ok_or_else(truncated)?;
        let auth = reader.sized().ok_or_else(truncated)?;
        let auth = Auth::parse(auth).ok_or_else(truncated)?;
        if auth.kind != 6 {
            let detail = format!("certification data of type {}, not 6 (QE report)", auth.kind);
            return Err(fault(names::CERTIFICATE_PARSE, detail));
        }
        let mut qe = Reader(auth.certification);
        let qe = QeReport::parse(&mut qe).ok_or_else(truncated)?;
        Ok(Quote { header, report, mrservicetd, signed, auth, qe })
    }
}

impl<'a> Auth<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let auth = Auth {
            signature: reader.array()?,
            key: reader.array()?,
            kind: reader.u16()?,
            certification: reader.sized()?,
        };
        reader.0.is_empty().then_some(auth)
    }
}

impl<'a> QeReport<'a> {
    fn parse(reader: &mut Reader<'a>) -> Option<Self> {
        let (report, signature) = (reader.array()?, reader.array()?);
        let length = usize::from(reader.u16()?);
        let qe = QeReport {
            report,
            signature,
            auth_data: reader.take(length)?,
            certification_type: reader.u16()?,
            certificates: reader.sized()?,
        };
        reader.0.is_empty().then_some(qe)
    }
}

fn check_header(header: &Header) -> Result<(), Unreadable> {
    let version = header.version.get();
    if !header.is_a_quote() {
        let detail = format!("not a quote: version {version}, an unknown kind, not Intel's");
        return Err(Unreadable { check: names::VERSION, detail, malformed: true });
    }
    if !(3..=5).contains(&version) {
        return Err(fault(names::VERSION, format!("version {version} is not 4 or 5")));
    }
    if header.tee_type.get() != TEE_TDX {
        let detail = format!("TEE type {:#x} is not TDX (0x81)", header.tee_type.get());
        return Err(fault(checks::TEE_TYPE, detail));
    }
    if version == 3 {
        return Err(fault(names::VERSION, "a quote of version 3 is not of a TD".into()));
    }
    if header.att_key_type.get() != 2 {
        let detail =
            format!("attestation key type {} is not 2 (ECDSA P-256)", header.att_key_type.get());
        return Err(fault(checks::ATT_KEY_TYPE, detail));
    }
    Ok(())
}
