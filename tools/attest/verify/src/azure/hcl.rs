//! The paravisor's report: a hardware report, and runtime data that it hashes (OpenHCL,
//! `attestation_report`). Numbers are little-endian.
//!
//! Header and padding are covered by no signature: they choose how the rest is read, and each choice is
//! confirmed by the hash in the hardware report, or refused.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

use crate::judgement::Ledger;
use crate::names::CheckName;
use crate::snp::{REPORT_LEN, Report};
use crate::tdx::td_report;

use super::checks;

/// The longest report that is read; real ones have 2048 or 2600 bytes.
const MAX_REPORT: usize = 4096;
const HARDWARE: usize = 32;
const RUNTIME_HEADER: usize = HARDWARE + REPORT_LEN;
const RUNTIME_HEADER_LEN: usize = 20;
const RUNTIME: usize = RUNTIME_HEADER + RUNTIME_HEADER_LEN;
/// Attestation requests with a hardware report.
const REQUEST: u32 = 2;
/// REPORTDATA within a TDREPORT (Intel TDX module ABI, "REPORTMACSTRUCT").
const TD_REPORT_DATA: usize = 128;
/// MRTD: TDINFO at 512, and 16 bytes into it.
const TD_MRTD: usize = 528;
const TD_REPORT_LEN: usize = 1024;

/// A report, taken apart.
pub(super) struct HclReport<'a> {
    pub(super) hardware: Hardware<'a>,
    hash: &'static Algorithm,
    pub(super) runtime: &'a [u8],
}

/// Whose report is inside.
pub(super) enum Hardware<'a> {
    /// An SEV-SNP report.
    Snp(&'a [u8; REPORT_LEN]),
    /// A TDREPORT and filling. Its MAC can be checked on its own machine alone.
    Tdx(&'a [u8; REPORT_LEN]),
}

impl Hardware<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Hardware::Snp(_) => "snp",
            Hardware::Tdx(_) => "tdx",
        }
    }

    fn report_data(&self) -> Option<[u8; 64]> {
        match self {
            Hardware::Snp(report) => Report::parse(&report[..]).map(|report| report.report_data),
            Hardware::Tdx(report) => field(*report, TD_REPORT_DATA),
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Why a report cannot be read.
pub(super) struct Fault {
    pub(super) check: CheckName,
    pub(super) detail: String,
}

impl<'a> HclReport<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let fault = |check, detail: String| Fault { check, detail };
        let length = bytes.len();
        let number = |at: usize| field(bytes, at).map(u32::from_le_bytes);
        let short = || {
            let detail = format!("{length} bytes are not a whole report of 1236 to {MAX_REPORT}");
            fault(checks::HCL_LENGTH, detail)
        };
        if length > MAX_REPORT {
            return Err(short());
        }
        let header = [0, 4, 8, 12, 16, 20, 24, 28].map(number);
        let runtime = [0, 4, 8, 12, 16].map(|at| number(RUNTIME_HEADER + at));
        let [Some(magic), Some(version), Some(size), Some(request), Some(status), reserved @ ..] =
            header
        else {
            return Err(short());
        };
        let [Some(data_size), Some(data_version), Some(kind), Some(hash), Some(variable)] = runtime
        else {
            return Err(short());
        };
        if magic != u32::from_le_bytes(*b"HCLA") {
            return Err(fault(checks::HCL_SIGNATURE, format!("{magic:#x} is not HCLA")));
        }
        let end = usize::try_from(variable).ok().and_then(|variable| variable.checked_add(RUNTIME));
        let sizes = [
            usize::try_from(size).ok(),
            usize::try_from(data_size).ok().map(|size| size + RUNTIME_HEADER),
        ];
        if sizes != [end, end] {
            let detail = format!("sizes {size}, {data_size} and {variable} do not agree");
            return Err(fault(checks::HCL_LENGTH, detail));
        }
        let contents = end.and_then(|end| bytes.get(RUNTIME..end)).ok_or_else(short)?;
        let known = (1..=2).contains(&version)
            && request == REQUEST
            && status == 0
            && reserved == [Some(0); 3]
            && data_version == 1;
        let hash = [&SHA256, &SHA384, &SHA512].into_iter().zip(1..).find(|(_, id)| *id == hash);
        let report = field_ref(bytes, HARDWARE).ok_or_else(short)?;
        let hardware = match kind {
            2 => Some(Hardware::Snp(report)),
            4 => Some(Hardware::Tdx(report)),
            _ => None,
        };
        match (known, hardware, hash) {
            (true, Some(hardware), Some((hash, _))) => {
                Ok(HclReport { hardware, hash, runtime: contents })
            }
            _ => {
                let detail = format!(
                    "version {version}, request {request}, status {status}, data version \
                     {data_version}, report type {kind}: not all are known"
                );
                Err(fault(checks::HCL_HEADER, detail))
            }
        }
    }

    /// That the hardware's REPORT_DATA is the hash of the runtime data, all 64 bytes.
    pub(super) fn check_binding(&self) -> Result<String, String> {
        let mut expected = [0; 64];
        let hash = digest(self.hash, self.runtime);
        let hash = hash.as_ref();
        expected[..hash.len()].copy_from_slice(hash);
        let found = self.hardware.report_data().ok_or("the hardware report cannot be read")?;
        if found == expected {
            Ok(crate::hex::text(&found))
        } else {
            let (found, expected) = (crate::hex::text(&found), crate::hex::text(&expected));
            Err(format!("REPORT_DATA is {found}, the runtime data has {expected}"))
        }
    }
}

fn field_ref<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// That the quote is of the trust domain whose TDREPORT is in the paravisor's report.
pub(super) fn check_td_quote(ledger: &mut Ledger, report: &[u8; REPORT_LEN], quote: Option<&[u8]>) {
    let Some(quote) = quote else {
        let why = "there is no quote: only its own machine can check a TD report";
        ledger.record(checks::TD_QUOTE_MISSING, Err(why.into()));
        return;
    };
    ledger.record(checks::TD_QUOTE_MISSING, Ok("a quote is there".into()));
    let Some(quoted) = td_report(quote) else { return };
    let report = &report[..TD_REPORT_LEN];
    let same = |what: &str, quoted: &[u8], reported: Option<&[u8]>| match reported {
        Some(reported) if reported == quoted => Ok(crate::hex::text(quoted)),
        _ => Err(format!("the quote has another {what} than the TD report")),
    };
    let data = report.get(TD_REPORT_DATA..TD_REPORT_DATA + 64);
    let mrtd = report.get(TD_MRTD..TD_MRTD + 48);
    ledger.record(checks::TD_QUOTE_REPORT_DATA, same("REPORTDATA", &quoted.report_data, data));
    ledger.record(checks::TD_QUOTE_MEASUREMENT, same("MRTD", &quoted.mrtd, mrtd));
}
