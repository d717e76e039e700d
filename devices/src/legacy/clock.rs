//! The clock of a PC, which OVMF does not start without.
//!
//! Source: Motorola MC146818A data sheet; the century byte is where QEMU and OVMF have it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// A base of 32 kHz; no update is in progress.
const DIVIDER: u8 = 0x20;
/// 24 hours, and binary-coded decimals: Linux reads no other, whatever this says.
const DECIMAL_24_HOURS: u8 = 1 << 1;
/// The time is valid.
const VALID: u8 = 1 << 7;

/// The host's time in UTC, to be read: an index port and a data port. It cannot be set, has no
/// alarms and never interrupts.
#[derive(Default)]
pub struct Clock {
    index: u8,
}

impl Clock {
    /// First of the ports.
    pub const BASE: u16 = 0x70;
    /// How many there are.
    pub const COUNT: u16 = 2;

    fn register(&self, seconds: u64) -> u8 {
        let days = seconds / 86400;
        let (year, month, day) = date(days);
        let value = match self.index {
            SECONDS => seconds % 60,
            MINUTES => seconds / 60 % 60,
            HOURS => seconds / 3600 % 24,
            // 1 January 1970 was a Thursday, and Sunday is 1.
            WEEKDAY => (days + 4) % 7 + 1,
            DAY => day,
            MONTH => month,
            YEAR => year % 100,
            CENTURY => year / 100,
            REGISTER_A => return DIVIDER,
            REGISTER_B => return DECIMAL_24_HOURS,
            REGISTER_D => return VALID,
            _ => 0,
        };
        u8::try_from(value / 10 * 16 + value % 10).unwrap_or(u8::MAX)
    }
}

/// Year, month and day, so many days after 1 January 1970 (Gregorian calendar).
fn date(days: u64) -> (u64, u64, u64) {
    const YEARS_400: u64 = 146_097;
    // Years that start with March have the leap day at their end; this one starts in year 0.
    let days = days + 719_468;
    let (era, day) = (days / YEARS_400, days % YEARS_400);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * era + year + next, month, day)
}

impl BusDevice for Clock {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (1, [value]) = (offset, data) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *value = self.register(now.as_secs());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // The upper bit of the index masks NMIs.
        if let (0, [index]) = (offset, data) {
            self.index = index & 0x7f;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, registers: &[u8]) -> Vec<u8> {
        registers.iter().map(|&index| Clock { index }.register(seconds)).collect()
    }

    #[test]
    fn the_registers_say_the_time() {
        let date = [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY];
        assert_eq!(at(0, &date), [0x19, 0x70, 1, 1, 0, 0, 0, 5]);
        assert_eq!(at(951_782_399, &date), [0x20, 0, 2, 0x28, 0x23, 0x59, 0x59, 2]);
        assert_eq!(at(951_782_400, &date), [0x20, 0, 2, 0x29, 0, 0, 0, 3]);
        assert_eq!(at(1_735_689_599, &date), [0x20, 0x24, 0x12, 0x31, 0x23, 0x59, 0x59, 3]);
        assert_eq!(at(4_107_542_400, &date), [0x21, 0, 3, 1, 0, 0, 0, 2]);
        assert_eq!(at(0, &[REGISTER_A, REGISTER_B, REGISTER_D, 0x34]), [0x20, 2, 0x80, 0]);
    }

    #[test]
    fn the_index_selects_and_nothing_is_set() {
        let mut clock = Clock::default();
        let mut value = [0];
        clock.write(0, &[0x80 | REGISTER_D]);
        clock.write(1, &[0]);
        clock.read(1, &mut value);
        assert_eq!(value, [VALID]);
    }
}
