//! Registers that a quote proves.

use std::collections::BTreeMap;
use std::fmt;

use ring::digest::{SHA256, digest};
use serde::{Serialize, Serializer};

use crate::hex::{Hex, OneOrMany};

/// Registers of a bank that a TPM has at most.
const MAX_REGISTERS: u32 = 32;
/// Sets of which a detail has the reason for their failure.
const MAX_REASONS: usize = 4;

/// A set of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Selected(u32);

impl Selected {
    /// From TPMS_PCR_SELECTION: bit `i` of byte `j` is register `8 j + i`.
    pub(crate) fn of(map: &[u8]) -> Result<Self, String> {
        let mut bits = [0; 4];
        let (known, rest) = map.split_at(map.len().min(bits.len()));
        if rest.iter().any(|byte| *byte != 0) {
            return Err(format!("a register from {MAX_REGISTERS} on is selected"));
        }
        bits[..known.len()].copy_from_slice(known);
        Ok(Selected(u32::from_le_bytes(bits)))
    }

    pub(crate) fn has(self, register: u32) -> bool {
        register < MAX_REGISTERS && self.0 >> register & 1 == 1
    }

    fn iter(self) -> impl Iterator<Item = u32> {
        (0..MAX_REGISTERS).filter(move |register| self.has(*register))
    }
}

impl fmt::Display for Selected {
    /// As ranges: `PCR 0-7, 9`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PCR")?;
        let mut separator = " ";
        let mut next = 0;
        while let Some(first) = (next..MAX_REGISTERS).find(|register| self.has(*register)) {
            let last = (first..MAX_REGISTERS).take_while(|register| self.has(*register)).last();
            let last = last.unwrap_or(first);
            write!(formatter, "{separator}{first}")?;
            if last > first {
                write!(formatter, "-{last}")?;
            }
            (separator, next) = (", ", last + 1);
        }
        Ok(())
    }
}

/// The values of selected registers.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Registers {
    pub(crate) selected: Selected,
    values: Vec<(u32, Hex<32>)>,
}

impl Registers {
    /// `values` are those of the selected registers, in ascending order and without gaps.
    pub(crate) fn new(selected: Selected, values: &[u8]) -> Result<Self, String> {
        let count = selected.iter().count();
        let (chunks, rest) = values.as_chunks::<32>();
        if !rest.is_empty() || chunks.len() != count {
            return Err(format!(
                "{} bytes are not the values of the {count} selected registers",
                values.len()
            ));
        }
        let values = selected.iter().zip(chunks.iter().map(|value| Hex(*value))).collect();
        Ok(Registers { selected, values })
    }

    pub(crate) fn digest(&self) -> Vec<u8> {
        let values: Vec<u8> = self.values.iter().flat_map(|(_, value)| value.0).collect();
        digest(&SHA256, &values).as_ref().to_vec()
    }

    pub(crate) fn get(&self, register: u32) -> Option<[u8; 32]> {
        let found = self.values.iter().find(|(number, _)| *number == register);
        found.map(|(_, value)| value.0)
    }

    /// Whether each wanted register is proven and has one of its values.
    pub(crate) fn check<'a>(
        &self,
        wanted: impl IntoIterator<Item = (u32, &'a OneOrMany<Hex<32>>)>,
    ) -> Result<String, String> {
        let mut checked = Selected(0);
        for (register, list) in wanted {
            let value = self.get(register).ok_or_else(|| {
                format!("PCR {register} is not selected, so its value is unknown")
            })?;
            list.check(&format!("PCR {register}"), &value)?;
            checked.0 |= 1 << register;
        }
        if checked == Selected(0) {
            return Err("the policy's list of registers is empty and allows nothing".into());
        }
        Ok(format!("{checked} have values that the policy names"))
    }

    /// Whether the registers of one set all have their values.
    pub(crate) fn check_sets(
        &self,
        sets: &[BTreeMap<u32, OneOrMany<Hex<32>>>],
    ) -> Result<String, String> {
        let one = |set: &BTreeMap<u32, _>| self.check(set.iter().map(|(at, list)| (*at, list)));
        let mut reasons = Vec::new();
        for (number, set) in (1..).zip(sets) {
            match one(set) {
                Ok(detail) => return Ok(format!("set {number}: {detail}")),
                Err(why) => reasons.push(format!("set {number}: {why}")),
            }
        }
        reasons.truncate(MAX_REASONS);
        if reasons.is_empty() {
            return Err("the policy's list of sets is empty and allows nothing".into());
        }
        Err(format!("none of {} sets fits: {}", sets.len(), reasons.join("; ")))
    }
}

impl Serialize for Registers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.values.iter().map(|(register, value)| (register, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_shown_as_ranges_and_bounded() {
        assert_eq!(Selected::of(&[0xff, 0x02]).unwrap().to_string(), "PCR 0-7, 9");
        assert_eq!(Selected::of(&[1, 0, 0x81, 0]).unwrap().to_string(), "PCR 0, 16, 23");
        assert_eq!(Selected::of(&[0, 0, 0, 0x80, 0]).unwrap().to_string(), "PCR 31");
        assert!(Selected::of(&[0, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn values_go_to_the_selected_registers_in_order() {
        let selected = Selected::of(&[0, 0, 0x81]).unwrap();
        let values = [[1; 32], [2; 32]].concat();
        let registers = Registers::new(selected, &values).unwrap();
        assert_eq!((registers.get(16), registers.get(23)), (Some([1; 32]), Some([2; 32])));
        assert_eq!((registers.get(0), registers.get(1)), (None, None));
        for length in [0, 32, 63, 96] {
            assert!(Registers::new(selected, &vec![0; length]).is_err(), "{length}");
        }
        // A value at the place of PCR 0 proves nothing of it.
        let list = OneOrMany(vec![Hex([1; 32])]);
        assert!(registers.check([(0, &list)]).is_err());
        assert!(registers.check([(16, &list)]).is_ok());
        assert!(registers.check([(16, &OneOrMany(Vec::new()))]).is_err());
        assert!(registers.check([]).is_err());
    }

    #[test]
    fn one_set_must_fit_whole() {
        let selected = Selected::of(&[0x30]).unwrap();
        let registers = Registers::new(selected, &[[1; 32], [2; 32]].concat()).unwrap();
        let set = |values: &[(u32, u8)]| -> BTreeMap<_, _> {
            let one = |(at, value): &(u32, u8)| (*at, OneOrMany(vec![Hex([*value; 32])]));
            values.iter().map(one).collect()
        };
        let good = set(&[(4, 1), (5, 2)]);
        assert!(registers.check_sets(&[set(&[(4, 9)]), good.clone()]).is_ok());
        // Halves of two sets are no set.
        assert!(registers.check_sets(&[set(&[(4, 1), (5, 9)]), set(&[(4, 9), (5, 2)])]).is_err());
        assert!(registers.check_sets(&[set(&[(4, 1), (6, 0)])]).is_err());
        assert!(registers.check_sets(&[set(&[])]).is_err());
        assert!(registers.check_sets(&[]).is_err());
    }
}
