//! The payload: a map with names as keys (AWS Nitro Enclaves NSM API, "attestation document").

use std::collections::BTreeMap;

use casemate_foreign::Foreign;

use crate::cbor::Item;
use crate::hex;
use crate::judgement::Ledger;

use super::NitroClaims;
use super::checks;

/// Registers of a Nitro security module.
const REGISTERS: u32 = 32;
/// Limits of the specification, in bytes.
const MAX_PUBLIC_KEY: usize = 1024;
const MAX_USER_DATA: usize = 512;
const MAX_MODULE_ID: usize = 256;

/// A document, taken apart.
pub(super) struct Document<'a> {
    module_id: &'a str,
    timestamp: u64,
    pcrs: BTreeMap<u32, &'a [u8]>,
    /// Whether the registers are an enclave's, of which three are zero in debug mode.
    is_enclave: bool,
    pub(super) certificate: &'a [u8],
    /// Root first.
    pub(super) cabundle: Vec<&'a [u8]>,
    public_key: Option<&'a [u8]>,
    pub(super) user_data: Option<&'a [u8]>,
    pub(super) nonce: Option<&'a [u8]>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Result<Self, String> {
        let item = Item::parse(payload)?;
        let field = |name: &'static str| item.get(&Item::Text(name));
        let bad = |name: &str| format!("{name} is missing or not of its type");
        let optional = |name: &'static str, longest: usize| match field(name) {
            None | Some(Item::Null) => Ok(None),
            Some(Item::Bytes(bytes)) if bytes.len() <= longest => Ok(Some(*bytes)),
            Some(_) => Err(bad(name)),
        };
        if field("digest").and_then(Item::text) != Some("SHA384") {
            return Err("digest is not SHA384".into());
        }
        let module_id = field("module_id").and_then(Item::text);
        let timestamp = field("timestamp").and_then(Item::integer);
        let bundle = field("cabundle").and_then(Item::array).ok_or_else(|| bad("cabundle"))?;
        let bundle: Option<Vec<&[u8]>> = bundle.iter().map(Item::bytes).collect();
        let (name, registers) = match (field("pcrs"), field("nitrotpm_pcrs")) {
            (Some(registers), None) => ("pcrs", registers),
            (None, Some(registers)) => ("nitrotpm_pcrs", registers),
            _ => return Err("not exactly one of pcrs and nitrotpm_pcrs".into()),
        };
        Ok(Document {
            module_id: module_id
                .filter(|id| id.len() <= MAX_MODULE_ID)
                .ok_or_else(|| bad("module_id"))?,
            timestamp: timestamp
                .and_then(|time| u64::try_from(time).ok())
                .ok_or_else(|| bad("timestamp"))?,
            pcrs: read_registers(registers).ok_or_else(|| bad(name))?,
            is_enclave: name == "pcrs",
            certificate: field("certificate")
                .and_then(Item::bytes)
                .ok_or_else(|| bad("certificate"))?,
            cabundle: bundle.ok_or_else(|| bad("cabundle"))?,
            public_key: optional("public_key", MAX_PUBLIC_KEY)?,
            user_data: optional("user_data", MAX_USER_DATA)?,
            nonce: optional("nonce", MAX_USER_DATA)?,
        })
    }

    pub(super) fn is_debug(&self) -> bool {
        let zero =
            |number| self.pcrs.get(&number).is_none_or(|value| value.iter().all(|byte| *byte == 0));
        self.is_enclave && (0..3).any(zero)
    }

    pub(super) fn check_mode(&self, ledger: &mut Ledger) {
        let finding = if self.is_debug() {
            Err("PCR0, PCR1 or PCR2 is zero or missing: the enclave is in debug mode".into())
        } else {
            Ok("production mode".into())
        };
        ledger.record(checks::DEBUG_MODE, finding);
    }

    pub(super) fn check_pcrs(
        &self,
        wanted: &BTreeMap<u32, crate::hex::Values>,
    ) -> Result<String, String> {
        if wanted.is_empty() {
            return Err("the policy's list of registers is empty and allows nothing".into());
        }
        for (number, values) in wanted {
            let found = self
                .pcrs
                .get(number)
                .ok_or_else(|| format!("the document does not have PCR{number}"))?;
            values.check(&format!("PCR{number}"), found)?;
        }
        let numbers: Vec<String> = wanted.keys().map(ToString::to_string).collect();
        Ok(format!("PCR {} have values that the policy names", numbers.join(", ")))
    }

    pub(super) fn claims(&self) -> NitroClaims {
        let text = |bytes: Option<&[u8]>| bytes.map(hex::text);
        NitroClaims {
            platform: "nitro",
            module_id: Foreign(self.module_id).to_string(),
            timestamp_ms: self.timestamp,
            pcrs: self.pcrs.iter().map(|(number, value)| (*number, hex::text(value))).collect(),
            user_data: text(self.user_data),
            public_key: text(self.public_key),
            nonce: text(self.nonce),
        }
    }
}

fn read_registers<'a>(item: &Item<'a>) -> Option<BTreeMap<u32, &'a [u8]>> {
    let mut registers = BTreeMap::new();
    for (number, value) in item.map()? {
        let number = u32::try_from(number.integer()?).ok().filter(|one| *one < REGISTERS)?;
        let value = value.bytes().filter(|value| [32, 48, 64].contains(&value.len()))?;
        registers.insert(number, value);
    }
    Some(registers)
}
