//! Event logs of TCG firmware (TCG PC Client Platform Firmware Profile, section 10), replayed.
//!
//! A log is the guest's word. What it leads to is worth something where a quote proves the same registers.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};

use crate::little_endian::Reader;

/// The longest log that is read.
const MAX_LOG: usize = 1 << 20;
/// Event types (section 10.4.1).
const EV_NO_ACTION: u32 = 3;
const EV_SEPARATOR: u32 = 4;
/// TPM_ALG_SHA256.
const SHA256_ID: u16 = 0x000b;
/// Algorithms that a header may list.
const MAX_ALGORITHMS: u32 = 16;
const SIGNATURE: &[u8] = b"Spec ID Event03\0";
const LOCALITY: &[u8] = b"StartupLocality\0";

/// An event.
struct Event<'a> {
    register: u32,
    kind: u32,
    /// Of the SHA-256 bank.
    digest: Option<[u8; 32]>,
    data: &'a [u8],
}

/// A log of the crypto-agile format. An unfinished one is refused: a part of it would lead to registers of its own.
pub(crate) struct EventLog<'a> {
    events: Vec<Event<'a>>,
}

impl<'a> EventLog<'a> {
    pub(crate) fn parse(log: &'a [u8]) -> Result<Self, String> {
        if log.len() > MAX_LOG {
            return Err(format!("an event log of {} bytes, at most {MAX_LOG} are read", log.len()));
        }
        let cut = || format!("the event log of {} bytes ends within an event", log.len());
        let mut reader = Reader(log);
        let algorithms = header(&mut reader).ok_or_else(|| {
            "the event log does not begin with \"Spec ID Event03\": logs of SHA-1 alone are refused"
                .to_owned()
        })?;
        let mut events = Vec::new();
        while !reader.0.is_empty() {
            events.push(event(&mut reader, &algorithms).ok_or_else(cut)?);
        }
        Ok(EventLog { events })
    }

    /// The registers of the SHA-256 bank that the log speaks of.
    pub(crate) fn replay_sha256(&self) -> Result<BTreeMap<u32, [u8; 32]>, String> {
        let mut registers = BTreeMap::new();
        let mut separators = Vec::new();
        for event in &self.events {
            if event.kind == EV_NO_ACTION {
                if let Some([locality]) = event.data.strip_prefix(LOCALITY) {
                    if event.register != 0 || registers.contains_key(&0) {
                        return Err("the startup locality is not the first event of PCR 0".into());
                    }
                    let mut value = [0; 32];
                    value[31] = *locality;
                    registers.insert(0, value);
                }
                continue;
            }
            if event.kind == EV_SEPARATOR {
                if separators.contains(&event.register) {
                    return Err(format!("PCR {} has two separators", event.register));
                }
                separators.push(event.register);
            }
            let digest_of = event.digest.ok_or("an event does not have a SHA-256 digest")?;
            let value = registers.entry(event.register).or_insert([0; 32]);
            let extended = digest(&SHA256, &[*value, digest_of].concat());
            value.copy_from_slice(extended.as_ref());
        }
        Ok(registers)
    }
}

/// Algorithms with the lengths of their digests.
fn header(reader: &mut Reader<'_>) -> Option<Vec<(u16, usize)>> {
    let (_register, kind) = (reader.u32()?, reader.u32()?);
    reader.take(20)?;
    let mut data = Reader(reader.sized()?);
    let signature = data.take(SIGNATURE.len())?;
    data.take(8)?;
    let count = data.u32().filter(|count| *count <= MAX_ALGORITHMS)?;
    let mut algorithms: Vec<(u16, usize)> = Vec::new();
    for _ in 0..count {
        let (algorithm, length) = (data.u16()?, usize::from(data.u16()?));
        if algorithms.iter().any(|(known, _)| *known == algorithm) {
            return None;
        }
        algorithms.push((algorithm, length));
    }
    let known = algorithms.contains(&(SHA256_ID, 32));
    (kind == EV_NO_ACTION && signature == SIGNATURE && known).then_some(algorithms)
}

fn event<'a>(reader: &mut Reader<'a>, algorithms: &[(u16, usize)]) -> Option<Event<'a>> {
    let (register, kind) = (reader.u32()?, reader.u32()?);
    let count = reader.u32().filter(|count| *count <= MAX_ALGORITHMS)?;
    let mut found = None;
    for _ in 0..count {
        let algorithm = reader.u16()?;
        let (_, length) = algorithms.iter().find(|(known, _)| *known == algorithm)?;
        let bytes = reader.take(*length)?;
        if algorithm == SHA256_ID && found.replace(bytes.try_into().ok()?).is_some() {
            return None;
        }
    }
    Some(Event { register, kind, digest: found, data: reader.sized()? })
}

#[cfg(test)]
mod tests {
    use casemate_test_support::cloud::cases;
    use proptest::prelude::*;

    use super::*;

    fn replay(log: &[u8]) -> Result<BTreeMap<u32, [u8; 32]>, String> {
        EventLog::parse(log).and_then(|log| log.replay_sha256())
    }

    /// The registers that a case states for the SHA-256 bank.
    fn stated(entry: &serde_json::Value) -> BTreeMap<u32, String> {
        let bank = &entry["registers"]["sha256"];
        let pairs = bank.as_object().unwrap().iter();
        pairs
            .map(|(number, value)| (number.parse().unwrap(), value.as_str().unwrap().into()))
            .collect()
    }

    #[test]
    fn logs_of_firmware_give_the_stated_registers() {
        let cases = cases("tpm-eventlog").unwrap();
        assert_eq!(cases.len(), 7);
        for case in cases {
            let replayed = replay(&case.files["log"]);
            let shown: Result<BTreeMap<u32, String>, String> = replayed.map(|registers| {
                registers.iter().map(|(number, value)| (*number, crate::hex::text(value))).collect()
            });
            let same = shown.as_ref().is_ok_and(|shown| *shown == stated(&case.entry));
            assert_eq!(same, case.verdict == "accept", "{}: {shown:?}", case.id);
        }
    }

    /// An event of the SHA-256 bank.
    fn event(register: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let numbers = [register, kind, 1].map(u32::to_le_bytes).concat();
        let digest = digest(&SHA256, data);
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&numbers, &SHA256_ID.to_le_bytes()[..], digest.as_ref(), &length, data].concat()
    }

    fn log(events: &[Vec<u8>]) -> Vec<u8> {
        let data = [SIGNATURE, &[0; 8], &[1, 0, 0, 0, 0x0b, 0, 32, 0, 0]].concat();
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        let header = [&[0, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &length, &data].concat();
        [header, events.concat()].concat()
    }

    #[test]
    fn logs_with_two_meanings_are_refused() {
        let separator = event(4, EV_SEPARATOR, &[0; 4]);
        assert_eq!(replay(&log(std::slice::from_ref(&separator))).unwrap().len(), 1);
        assert!(replay(&log(&[separator.clone(), separator.clone()])).is_err());
        let locality = event(0, EV_NO_ACTION, b"StartupLocality\0\x03");
        let first = event(0, 8, b"version");
        assert!(replay(&log(&[locality.clone(), first.clone()])).is_ok());
        assert!(replay(&log(&[first.clone(), locality.clone()])).is_err());
        assert!(replay(&log(&[locality.clone(), locality])).is_err());
        let whole = log(&[first, separator]);
        let prefixes = (0..whole.len()).filter(|length| replay(&whole[..*length]).is_ok()).count();
        // The header alone, and with the first event.
        assert_eq!(prefixes, 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(events in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = replay(&events);
            let _ = replay(&log(&[events]));
        }
    }
}
