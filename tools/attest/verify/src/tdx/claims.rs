//! What a quote says, by name.

use serde::Serialize;

use super::policy::TcbStatus;
use crate::hex::Hex;
use crate::judgement::Trust;
use crate::rtmr::Registers;

use super::quote::Quote;
use super::tcb::Platform;

/// What a quote says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TdxClaims {
    /// `"tdx"`.
    pub platform: &'static str,
    /// Whom the root of the quote's chain belongs to; null when it is not trusted.
    pub trust: Option<Trust>,
    /// The quote's version.
    pub version: u16,
    /// The platform's TCB status; null when it could not be judged.
    pub tcb_status: Option<TcbStatus>,
    /// Intel's security advisories that apply to the platform.
    pub advisories: Vec<String>,
    /// The number of the TCB evaluation that judged the platform.
    pub tcb_evaluation_data_number: Option<u32>,
    /// Security versions of the TDX module.
    pub tee_tcb_svn: Hex<16>,
    /// The TDX module's measurement.
    pub mrseam: Hex<48>,
    /// The TDX module's signer.
    pub mrsignerseam: Hex<48>,
    /// The TD's attributes.
    pub td_attributes: Hex<8>,
    /// Whether the TD is under debug or profiled.
    pub debug: bool,
    /// The TD's extended features.
    pub xfam: Hex<8>,
    /// The measurement of the TD's first contents.
    pub mrtd: Hex<48>,
    /// What the host gave at launch.
    pub mrconfigid: Hex<48>,
    /// The owner that the host named at launch.
    pub mrowner: Hex<48>,
    /// The owner's configuration that the host named at launch.
    pub mrownerconfig: Hex<48>,
    /// The measurement of bound service TDs; null when the quote's body does not have it.
    pub mrservicetd: Option<Hex<48>>,
    /// The run-time measurement registers.
    pub rtmr: [Hex<48>; 4],
    /// What the event log leads to, register by register; null without a log.
    pub event_log_rtmr: Option<[Hex<48>; 4]>,
    /// What the guest put in.
    pub report_data: Hex<64>,
}

impl TdxClaims {
    pub(crate) fn new(
        quote: &Quote<'_>,
        trust: Option<Trust>,
        platform: Option<Platform>,
        replayed: Option<Registers>,
    ) -> Self {
        let report = quote.report;
        let evaluation = platform.as_ref().map(|platform| platform.evaluation);
        TdxClaims {
            platform: "tdx",
            trust,
            version: quote.header.version.get(),
            tcb_status: platform.as_ref().map(|platform| platform.status),
            advisories: platform.map(|platform| platform.advisories).unwrap_or_default(),
            tcb_evaluation_data_number: evaluation,
            tee_tcb_svn: Hex(report.tee_tcb_svn),
            mrseam: Hex(report.mrseam),
            mrsignerseam: Hex(report.mrsignerseam),
            td_attributes: Hex(report.td_attributes),
            debug: u64::from_le_bytes(report.td_attributes) & 0x71 != 0,
            xfam: Hex(report.xfam),
            mrtd: Hex(report.mrtd),
            mrconfigid: Hex(report.mrconfigid),
            mrowner: Hex(report.mrowner),
            mrownerconfig: Hex(report.mrownerconfig),
            mrservicetd: quote.mrservicetd.copied().map(Hex),
            rtmr: report.rtmr.map(Hex),
            event_log_rtmr: replayed.map(|registers| registers.map(Hex)),
            report_data: Hex(report.report_data),
        }
    }
}
