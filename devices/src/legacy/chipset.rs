//! What OVMF expects of QEMU's q35 machine and Linux does not: the power management registers of an
//! ICH9, as far as firmware uses them.
//!
//! Source: Intel I/O Controller Hub 9 Family data sheet, sections 13.8.3.3 (PM1_CNT) and 13.8.3.4
//! (PM1_TMR).

use std::time::Instant;

use super::{GuestEnd, OnEnd};
use crate::bus::BusDevice;

/// Ticks per second of the ACPI timer.
const FREQUENCY: u128 = 3_579_545;
/// The timer has 24 bits.
const TIMER_MASK: u128 = 0xff_ffff;
/// PM1_CNT: SLP_EN. OVMF clears SLP_TYP, which means S5 on this chipset's machine in QEMU.
const SLEEP_ENABLE: u16 = 1 << 13;

/// PM1_CNT and PM1_TMR, at offsets 4 and 8 from PMBASE.
pub struct PmRegisters {
    start: Instant,
    on_end: OnEnd,
}

impl PmRegisters {
    /// Offset of the first register from PMBASE.
    pub const OFFSET: u16 = Self::CONTROL_OFFSET;
    /// How many ports there are.
    pub const COUNT: u16 = 8;
    const CONTROL_OFFSET: u16 = 4;
    const CONTROL: u64 = 0;
    const TIMER: u64 = 4;

    /// Registers whose timer starts now.
    #[must_use]
    pub fn new(on_end: OnEnd) -> Self {
        Self { start: Instant::now(), on_end }
    }
}

impl BusDevice for PmRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (Self::CONTROL, data @ [_, _]) => data.fill(0),
            (Self::TIMER, data @ [_, _, _, _]) => {
                let ticks = self.start.elapsed().as_nanos() * FREQUENCY / 1_000_000_000;
                let ticks = u32::try_from(ticks & TIMER_MASK).unwrap_or_default();
                data.copy_from_slice(&ticks.to_le_bytes());
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Self::CONTROL, &[low, high]) = (offset, data)
            && u16::from_le_bytes([low, high]) & SLEEP_ENABLE != 0
        {
            (self.on_end)(GuestEnd::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_timer_runs_and_the_control_register_powers_off() {
        let off = Arc::new(AtomicBool::new(false));
        let seen = off.clone();
        let mut registers = PmRegisters::new(Arc::new(move |end| {
            seen.store(end == GuestEnd::PowerOff, Ordering::Relaxed);
        }));
        let mut ticks = [[0; 4]; 2];
        registers.read(4, &mut ticks[0]);
        while ticks[1] <= ticks[0] {
            registers.read(4, &mut ticks[1]);
        }
        assert_eq!(ticks[1][3], 0);
        registers.write(0, &[0, 0]);
        registers.write(4, &SLEEP_ENABLE.to_le_bytes());
        assert!(!off.load(Ordering::Relaxed));
        registers.write(0, &SLEEP_ENABLE.to_le_bytes());
        assert!(off.load(Ordering::Relaxed));
    }
}
