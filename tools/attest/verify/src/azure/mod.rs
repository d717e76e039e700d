//! Evidence of Azure's confidential guests, SEV-SNP and TDX.
//!
//! Such a guest runs below a paravisor of Microsoft's, which owns the hardware report and a virtual TPM. The
//! report's measurement names the paravisor with its firmware; the kernel and all that follows are in the TPM's
//! registers. The chain is: a vendor's root, the hardware report (a part of the result), its REPORT_DATA, the
//! runtime data that it hashes, the TPM key in there, the quote by that key, and the registers in its signed
//! selection.

pub mod checks;
mod hcl;
mod json;
mod policy;
mod runtime;

use serde::Serialize;

use crate::hex::Hex;
use crate::judgement::{Judgement, Ledger};
use crate::names::CheckName;
use crate::snp::{self, SnpEvidence};
use crate::tdx::{self, TdxEvidence};
use crate::time::Timestamp;
use crate::tpm::{self, QuoteParts, Registers};

pub use json::{AzureFiles, AzureHardware, EvidenceError};
pub use policy::AzurePolicy;

use hcl::{Hardware, HclReport};
use runtime::RuntimeData;

/// The evidence of a guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct AzureEvidence<'a> {
    /// The paravisor's report, as in NV index 0x01400001 of the virtual TPM.
    pub hcl: &'a [u8],
    /// The quote by the key at handle 0x81000003.
    pub quote: Option<QuoteParts<'a>>,
    /// SEV-SNP: the chip's certificate, DER or PEM.
    pub vek: Option<&'a [u8]>,
    /// SEV-SNP: the certificates above it, ASK and ARK; by default AMD's, which are built in.
    pub issuers: Option<(&'a [u8], &'a [u8])>,
    /// SEV-SNP: the root's revocation list.
    pub crl: Option<&'a [u8]>,
    /// TDX: the quote that the metadata service returned for the report in `hcl`.
    pub td_quote: Option<&'a [u8]>,
    /// TDX: Intel's collateral as one JSON object.
    pub collateral: Option<&'a [u8]>,
}

/// What the evidence says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct AzureClaims {
    /// `"azure"`.
    pub platform: &'static str,
    /// `"snp"` or `"tdx"`.
    pub hardware: &'static str,
    /// What the guest had the paravisor put into the report.
    pub user_data: Option<Hex<64>>,
    /// Whether secure boot is on, by the paravisor's word.
    pub secure_boot: Option<bool>,
    /// The machine's identifier, by the paravisor's word.
    pub vm_id: Option<String>,
    /// The registers that the quote proves.
    pcrs: Option<Registers>,
}

/// The checks of this node; the hardware report's are those of its part.
const ALWAYS: &[CheckName] = &[
    checks::HCL_LENGTH,
    checks::HCL_SIGNATURE,
    checks::HCL_HEADER,
    checks::RUNTIME_DATA_JSON,
    checks::RUNTIME_DATA_BINDING,
    checks::USER_DATA,
    checks::SECURE_BOOT,
];
/// The checks of a TDX guest besides.
const OF_TDX: &[CheckName] =
    &[checks::TD_QUOTE_MISSING, checks::TD_QUOTE_REPORT_DATA, checks::TD_QUOTE_MEASUREMENT];

/// Judges evidence at the time `at`. A `test_root` (DER or PEM) is trusted as if it were a vendor's.
#[must_use]
pub fn verify(
    evidence: &AzureEvidence<'_>,
    policy: &AzurePolicy,
    test_root: Option<&[u8]>,
    at: Timestamp,
) -> Judgement<AzureClaims> {
    let report = HclReport::parse(evidence.hcl);
    let of_tdx = matches!(&report, Ok(report) if matches!(report.hardware, Hardware::Tdx(_)));
    let mut announced = [ALWAYS, tpm::CHECKS].concat();
    announced.extend(of_tdx.then_some(OF_TDX).into_iter().flatten());
    let mut ledger = Ledger::new(&announced);
    let report = match report {
        Ok(report) => report,
        Err(fault) => {
            ledger.malformed(fault.check, fault.detail);
            return ledger.close(None, "the paravisor's report could not be read");
        }
    };
    ledger.record(checks::HCL_LENGTH, Ok(format!("{} bytes", evidence.hcl.len())));
    ledger.record(checks::HCL_SIGNATURE, Ok("HCLA".into()));
    ledger.record(checks::HCL_HEADER, Ok(report.hardware.name().into()));
    ledger.record(checks::RUNTIME_DATA_BINDING, report.check_binding());
    let runtime = RuntimeData::parse(report.runtime);
    let detail = |_: &RuntimeData| "an attestation key and the machine's configuration".to_owned();
    ledger.record(checks::RUNTIME_DATA_JSON, runtime.as_ref().map(detail).map_err(String::clone));
    let runtime = runtime.ok();
    check_runtime(&mut ledger, runtime.as_ref(), policy);
    let key = runtime.as_ref().map(|runtime| &runtime.key);
    let registers = tpm::check(&mut ledger, evidence.quote.as_ref(), key, &policy.tpm);
    if let Hardware::Tdx(report) = &report.hardware {
        hcl::check_td_quote(&mut ledger, report, evidence.td_quote);
    }
    let claims = AzureClaims {
        platform: "azure",
        hardware: report.hardware.name(),
        user_data: runtime.as_ref().and_then(|runtime| runtime.user_data),
        secure_boot: runtime.as_ref().and_then(RuntimeData::secure_boot),
        vm_id: runtime.as_ref().and_then(RuntimeData::vm_id),
        pcrs: registers,
    };
    let nothing = "an earlier check failed, so there was nothing to compare";
    let mut judgement = ledger.close(Some(claims), nothing);
    add_hardware(&mut judgement, &report.hardware, evidence, policy, test_root, at);
    judgement
}

fn check_runtime(ledger: &mut Ledger, runtime: Option<&RuntimeData>, policy: &AzurePolicy) {
    match (runtime, &policy.user_data) {
        (_, None) => ledger.unset(checks::USER_DATA),
        (None, Some(_)) => {}
        (Some(runtime), Some(wanted)) => ledger.record(
            checks::USER_DATA,
            match &runtime.user_data {
                Some(found) => wanted.check("user-data", &found.0),
                None => Err("the runtime data has no user-data".into()),
            },
        ),
    }
    match (runtime, policy.require_secure_boot) {
        (_, None | Some(false)) => ledger.unset(checks::SECURE_BOOT),
        (None, Some(true)) => {}
        (Some(runtime), Some(true)) => ledger.record(
            checks::SECURE_BOOT,
            match runtime.secure_boot() {
                Some(true) => Ok("secure boot is on".into()),
                Some(false) => Err("secure boot is off".into()),
                None => Err("the runtime data does not say whether secure boot is on".into()),
            },
        ),
    }
}

/// Judges the hardware's report by itself, as a part.
fn add_hardware(
    judgement: &mut Judgement<AzureClaims>,
    hardware: &Hardware<'_>,
    evidence: &AzureEvidence<'_>,
    policy: &AzurePolicy,
    test_root: Option<&[u8]>,
    at: Timestamp,
) {
    match hardware {
        Hardware::Snp(report) => {
            let report = &report[..];
            let vek = evidence.vek.unwrap_or_default();
            let (ask, ark) = evidence.issuers.or(snp::chain_for(vek)).unwrap_or_default();
            let evidence = SnpEvidence { report, vek, ask, ark, crl: evidence.crl };
            let part = snp::verify(&evidence, &policy.snp, test_root, at);
            judgement.add_part("snp-report", part);
        }
        Hardware::Tdx(_) => {
            if let Some(quote) = evidence.td_quote {
                let evidence =
                    TdxEvidence { quote, collateral: evidence.collateral, event_log: None };
                let part = tdx::verify(&evidence, &policy.tdx, test_root, at);
                judgement.add_part("td-quote", part);
            }
        }
    }
}
