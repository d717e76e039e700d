//! The TD report against the policy, and against an event log.

use super::policy::TdxPolicy;
use crate::hex::Hex;
use crate::judgement::Ledger;
use crate::names;
use crate::rtmr::{self, Registers};

use super::checks;
use super::quote::{Quote, TdReport};

/// TD attributes that the TDX module ABI specification (table "TD Attributes") reserves as zero.
const RESERVED: u64 = 0b1110 | 0xff80 | 0x0780_0000 | 0x3fff_ffff_0000_0000;
/// TUD: the TD is under debug or profiled.
const UNDER_DEBUG: u64 = 0x71;
const SERVTD_EXT: u64 = 1 << 17;
const SEPT_VE_DISABLE: u64 = 1 << 28;
const MIGRATABLE: u64 = 1 << 29;

/// Records the checks of the TD report's fields; gives the registers that the event log leads to.
pub(crate) fn check(
    ledger: &mut Ledger,
    quote: &Quote<'_>,
    event_log: Option<&[u8]>,
    policy: &TdxPolicy,
) -> Option<Registers> {
    let report = quote.report;
    check_service(ledger, quote, policy);
    check_attributes(ledger, report, policy);
    ledger.condition(names::MEASUREMENT, policy.mrtd.as_ref(), |list| {
        list.check("MRTD", &report.mrtd)
    });
    ledger.condition(checks::MRCONFIGID, policy.mrconfigid.as_ref(), |list| {
        list.check("MRCONFIGID", &report.mrconfigid)
    });
    ledger.condition(checks::MROWNER, policy.mrowner.as_ref(), |list| {
        list.check("MROWNER", &report.mrowner)
    });
    ledger.condition(checks::MROWNERCONFIG, policy.mrownerconfig.as_ref(), |list| {
        list.check("MROWNERCONFIG", &report.mrownerconfig)
    });
    match (&policy.xfam, &policy.allowed_xfam) {
        (None, None) => ledger.unset(checks::XFAM),
        (listed, allowed) => {
            for finding in [
                listed.as_ref().map(|list| list.check("XFAM", &report.xfam)),
                allowed.as_ref().map(|allowed| check_bits("XFAM", &report.xfam, allowed)),
            ] {
                finding.into_iter().for_each(|finding| ledger.record(checks::XFAM, finding));
            }
        }
    }
    ledger.condition(names::REPORT_DATA, policy.report_data.as_ref(), |list| {
        list.check("REPORTDATA", &report.report_data)
    });
    check_registers(ledger, report, event_log, policy)
}

/// A service TD, such as a migration TD, is part of what the guest's secrets rest on. Without a condition there must
/// be none.
fn check_service(ledger: &mut Ledger, quote: &Quote<'_>, policy: &TdxPolicy) {
    match (quote.mrservicetd, &policy.mrservicetd) {
        (None, None) => ledger.unset(checks::MRSERVICETD),
        (None, Some(_)) => {
            let detail = "the quote's TD report is older than version 1.5 and has no MRSERVICETD";
            ledger.record(checks::MRSERVICETD, Err(detail.into()));
        }
        (Some(found), Some(list)) => {
            ledger.record(checks::MRSERVICETD, list.check("MRSERVICETD", found));
        }
        (Some([0, zeros @ ..]), None) if zeros.iter().all(|byte| *byte == 0) => {
            ledger.record(checks::MRSERVICETD, Ok("no service TD is bound".into()));
        }
        (Some(found), None) => {
            let found = Hex(*found);
            let detail =
                format!("service TDs are bound (MRSERVICETD {found}); list those to trust");
            ledger.record(checks::MRSERVICETD, Err(detail));
        }
    }
}

/// That no bit is set but the allowed ones.
fn check_bits(what: &str, found: &[u8; 8], allowed: &Hex<8>) -> Result<String, String> {
    let more = u64::from_le_bytes(*found) & !u64::from_le_bytes(allowed.0);
    if more == 0 {
        Ok(format!("{what} has allowed bits only"))
    } else {
        Err(format!("{what} has the bits {more:#x}, which the policy does not allow"))
    }
}

fn check_attributes(ledger: &mut Ledger, report: &TdReport, policy: &TdxPolicy) {
    let attributes = u64::from_le_bytes(report.td_attributes);
    ledger.record(
        names::POLICY_RESERVED,
        if attributes & RESERVED == 0 {
            Ok(format!("{attributes:#x}"))
        } else {
            Err(format!("the TD's attributes {attributes:#x} have reserved bits"))
        },
    );
    let forbidden = (policy.allow_debug == Some(false)).then_some(());
    ledger.condition(checks::TD_DEBUG, forbidden, |()| {
        if attributes & UNDER_DEBUG == 0 {
            Ok("the TD is not under debug".into())
        } else {
            Err(format!("the TD is under debug or profiled (attributes {attributes:#x})"))
        }
    });
    // The quoting rules hold without a policy: such a TD can be changed from outside.
    let unsafe_bits = [
        (attributes & MIGRATABLE != 0, "the TD can be migrated"),
        (attributes & SERVTD_EXT != 0, "the TD is bound to service TDs"),
        (
            attributes & SEPT_VE_DISABLE == 0,
            "the host can take pages away unnoticed (SEPT_VE_DISABLE)",
        ),
    ];
    let unsafe_bit = unsafe_bits.iter().find(|(found, _)| *found);
    let listed = policy
        .td_attributes
        .as_ref()
        .map(|list| list.check("TD attributes", &report.td_attributes));
    ledger.record(
        checks::TD_ATTRIBUTES,
        match (unsafe_bit, listed) {
            (Some((_, why)), _) => Err((*why).to_owned()),
            (None, Some(listed)) => listed,
            (None, None) => Ok(Hex(report.td_attributes).to_string()),
        },
    );
    if let Some(allowed) = &policy.allowed_td_attributes {
        let finding = check_bits("the TD's attributes", &report.td_attributes, allowed);
        ledger.record(checks::TD_ATTRIBUTES, finding);
    }
}

fn check_registers(
    ledger: &mut Ledger,
    report: &TdReport,
    event_log: Option<&[u8]>,
    policy: &TdxPolicy,
) -> Option<Registers> {
    let Some(log) = event_log else {
        ledger.condition(checks::RTMR, policy.rtmr.as_ref(), |wanted| check_wanted(report, wanted));
        return None;
    };
    let registers = match rtmr::replay(log) {
        Ok(registers) => registers,
        Err(error) => {
            ledger.malformed(checks::RTMR, error.to_string());
            return None;
        }
    };
    let different =
        (0..).zip(registers.iter().zip(&report.rtmr)).find(|(_, (log, rtmr))| log != rtmr);
    ledger.record(
        checks::RTMR,
        match different {
            None => Ok("the event log gives all four registers".into()),
            Some((number, (log, rtmr))) => {
                Err(format!("RTMR{number} is {}, the event log gives {}", Hex(*rtmr), Hex(*log)))
            }
        },
    );
    if let Some(wanted) = &policy.rtmr {
        ledger.record(checks::RTMR, check_wanted(report, wanted));
    }
    Some(registers)
}

fn check_wanted(
    report: &TdReport,
    wanted: &[Option<crate::hex::OneOrMany<Hex<48>>>],
) -> Result<String, String> {
    if wanted.is_empty() {
        return Err("the policy's list of registers is empty and allows nothing".into());
    }
    for (number, (wanted, found)) in wanted.iter().zip(&report.rtmr).enumerate() {
        if let Some(list) = wanted {
            list.check(&format!("RTMR{number}"), found)?;
        }
    }
    Ok("the registers are what the policy names".into())
}
