//! Run-time measurement registers of TDX, recomputed from an event log.
//!
//! A register begins as zeros, and each event makes it SHA-384(register || digest). An event log is
//! the guest's word: it is worth something only when the registers that it gives are those of a
//! quote that was accepted.

use ring::digest::{Context, SHA384};
use serde::Deserialize;

use crate::hex::Hex;

/// The four registers.
pub type Registers = [[u8; 48]; 4];

const EV_NO_ACTION: u32 = 3;
/// TPM_ALG_SHA384 (TCG algorithm registry).
const SHA384_ID: u16 = 0x000c;

/// An event log that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EventLogError {
    /// The log ends within an event.
    #[error("the event log ends within the event at byte {0}")]
    Truncated(usize),
    /// The log does not begin with the event that names its digests.
    #[error("the event log does not begin with a \"Spec ID Event03\" event that lists SHA-384")]
    NoHeader,
    /// An event has a digest of an algorithm that the header does not name.
    #[error("the event at byte {at} has a digest of algorithm {algorithm:#06x}, not in the header")]
    UnknownAlgorithm {
        /// Where the event begins.
        at: usize,
        /// The algorithm's number.
        algorithm: u16,
    },
    /// An event has not exactly one SHA-384 digest.
    #[error("the event at byte {0} does not have exactly one SHA-384 digest")]
    NoDigest(usize),
    /// An event is for a register that does not exist.
    #[error("event {index} is for measurement register {register}, of which there are 1 to 4")]
    UnknownRegister {
        /// Which event, from zero.
        index: usize,
        /// The register, counted as the log does.
        register: u32,
    },
    /// The JSON form cannot be read.
    #[error("could not read the event log as a JSON list of events: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads an event log, binary (CCEL) or a JSON list, and gives the registers that it leads to.
///
/// # Errors
/// See [`EventLogError`].
pub fn replay(log: &[u8]) -> Result<Registers, EventLogError> {
    match log.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => replay_json(log),
        _ => replay_ccel(log),
    }
}

fn extend(registers: &mut Registers, register: usize, digest: &[u8]) -> Option<()> {
    let value = registers.get_mut(register)?;
    let mut context = Context::new(&SHA384);
    context.update(value);
    context.update(digest);
    value.copy_from_slice(context.finish().as_ref());
    Some(())
}

/// Replays the contents of the CCEL ACPI table's log area: TCG PC Client events in the crypto-agile
/// format, register `n` written as `n + 1`, filled up with 0xff (Intel TDX virtual firmware design
/// guide, "Event Log"; TCG PC Client platform firmware profile, section 10).
///
/// # Errors
/// See [`EventLogError`].
pub fn replay_ccel(log: &[u8]) -> Result<Registers, EventLogError> {
    let mut reader = Reader { log, at: 0, event: 0 };
    let algorithms = header(&mut reader)?;
    let mut registers = [[0; 48]; 4];
    let mut index = 1;
    while !reader.at_end() {
        reader.event = reader.at;
        let register = reader.u32()?;
        let kind = reader.u32()?;
        let digest = digest(&mut reader, &algorithms)?;
        let data = reader.u32()?;
        reader.take(data)?;
        if kind != EV_NO_ACTION {
            register
                .checked_sub(1)
                .and_then(|number| usize::try_from(number).ok())
                .and_then(|number| extend(&mut registers, number, digest))
                .ok_or(EventLogError::UnknownRegister { index, register })?;
        }
        index += 1;
    }
    Ok(registers)
}

/// The first event: in the old format, with the algorithms' numbers and digest lengths.
fn header(reader: &mut Reader<'_>) -> Result<Vec<(u16, u16)>, EventLogError> {
    reader.u32()?;
    let kind = reader.u32()?;
    reader.take(20)?;
    let length = reader.u32()?;
    let data = reader.take(length)?;
    let mut reader = Reader { log: data, at: 0, event: 0 };
    // Signature, platform class, version (4 bytes).
    let signature = reader.take(16)?;
    reader.take(8)?;
    let count = reader.u32()?;
    let mut algorithms = Vec::new();
    for _ in 0..count {
        algorithms.push((reader.u16()?, reader.u16()?));
    }
    let known = signature == b"Spec ID Event03\0" && algorithms.contains(&(SHA384_ID, 48));
    if known && kind == EV_NO_ACTION { Ok(algorithms) } else { Err(EventLogError::NoHeader) }
}

/// The SHA-384 digest among an event's digests.
fn digest<'a>(
    reader: &mut Reader<'a>,
    algorithms: &[(u16, u16)],
) -> Result<&'a [u8], EventLogError> {
    let at = reader.event;
    let count = reader.u32()?;
    let mut found = None;
    for _ in 0..count {
        let algorithm = reader.u16()?;
        let (_, length) = algorithms
            .iter()
            .find(|(number, _)| *number == algorithm)
            .ok_or(EventLogError::UnknownAlgorithm { at, algorithm })?;
        let bytes = reader.take(u32::from(*length))?;
        if algorithm == SHA384_ID && found.replace(bytes).is_some() {
            return Err(EventLogError::NoDigest(at));
        }
    }
    found.ok_or(EventLogError::NoDigest(at))
}

struct Reader<'a> {
    log: &'a [u8],
    at: usize,
    /// Where the current event begins, for messages.
    event: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u32) -> Result<&'a [u8], EventLogError> {
        let truncated = EventLogError::Truncated(self.event);
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        match end.and_then(|end| Some((end, self.log.get(self.at..end)?))) {
            Some((end, bytes)) => {
                self.at = end;
                Ok(bytes)
            }
            None => Err(truncated),
        }
    }

    fn u16(&mut self) -> Result<u16, EventLogError> {
        let bytes = self.take(2)?.first_chunk().ok_or(EventLogError::Truncated(self.event))?;
        Ok(u16::from_le_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, EventLogError> {
        let bytes = self.take(4)?.first_chunk().ok_or(EventLogError::Truncated(self.event))?;
        Ok(u32::from_le_bytes(*bytes))
    }

    /// Whether only filling follows.
    fn at_end(&self) -> bool {
        let rest = self.log.get(self.at..).unwrap_or_default();
        rest.is_empty() || rest.iter().take(4).all(|byte| *byte == 0xff)
    }
}

/// An event as JSON logs have it.
#[derive(Deserialize)]
struct JsonEvent {
    #[serde(alias = "imr")]
    rtmr: u32,
    event_type: u32,
    digest: Hex<48>,
}

/// Replays a JSON list of `{"rtmr" or "imr": 0..3, "event_type", "digest"}`; other keys are passed
/// over.
///
/// # Errors
/// See [`EventLogError`].
pub fn replay_json(log: &[u8]) -> Result<Registers, EventLogError> {
    let events: Vec<JsonEvent> = serde_json::from_slice(log)?;
    let mut registers = [[0; 48]; 4];
    for (index, event) in events.iter().enumerate() {
        if event.event_type == EV_NO_ACTION {
            continue;
        }
        usize::try_from(event.rtmr)
            .ok()
            .and_then(|register| extend(&mut registers, register, &event.digest.0))
            .ok_or(EventLogError::UnknownRegister { index, register: event.rtmr })?;
    }
    Ok(registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CCEL: &[u8] =
        include_bytes!("../../../../tests/data/evidence/tdx/gotdx-cos113/ccel_data.dat");

    #[test]
    fn a_log_that_is_cut_off_gives_other_registers_or_none() {
        let whole = replay_ccel(CCEL).unwrap();
        let contents = CCEL.len() - 64;
        assert!(CCEL[contents..].iter().all(|byte| *byte == 0xff));
        assert_eq!(replay_ccel(&CCEL[..contents]).unwrap(), whole);
        for length in 0..contents {
            let cut = replay_ccel(&CCEL[..length]);
            assert!(cut.is_err() || cut.is_ok_and(|registers| registers != whole), "{length}");
        }
    }

    /// Logs as GRUB and systemd leave them, with filling of either kind.
    #[test]
    fn logs_of_google_s_guests_give_the_stated_registers() {
        let cases = casemate_test_support::cloud::cases("ccel-log").unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let registers =
                replay(&case.files["log"]).unwrap_or_else(|error| panic!("{}: {error}", case.id));
            for (number, value) in registers.iter().enumerate() {
                // A register that a log does not speak of is zero.
                let stated = &case.entry["registers"]["sha384"][number.to_string()];
                let stated = stated.as_str().map_or("00".repeat(48), str::to_owned);
                assert_eq!(stated, crate::hex::text(value), "{}: RTMR{number}", case.id);
            }
        }
    }

    #[test]
    fn registers_that_do_not_exist_are_refused() {
        let event = |rtmr: u64| {
            let digest = "00".repeat(48);
            format!("[{{\"rtmr\": {rtmr}, \"event_type\": 1, \"digest\": \"{digest}\"}}]")
        };
        assert!(replay(event(3).as_bytes()).is_ok());
        assert!(replay(event(4).as_bytes()).is_err());
        assert!(replay(event(1 << 40).as_bytes()).is_err());
    }
}
