//! The ports by which a guest ends.

use super::{GuestEnd, OnEnd};
use crate::bus::BusDevice;

/// ACPI's sleep control, sleep status and reset register: three ports of a byte each.
///
/// Source: ACPI 6.5, sections 4.8.3.6 (reset register) and 4.8.3.7 (sleep control and status of
/// hardware-reduced platforms).
pub struct AcpiPower(pub OnEnd);

impl AcpiPower {
    /// The number of ports.
    pub const PORTS: u16 = 3;
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u16 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u16 = 1;
    /// Offset of the reset register.
    pub const RESET: u16 = 2;
    /// What resets when it is written to the reset register.
    pub const RESET_VALUE: u8 = 1;
    /// SLP_TYP of S5, soft off.
    pub const S5: u8 = 5;
    /// SLP_EN.
    const SLEEP_ENABLE: u8 = 1 << 5;
    /// Position of SLP_TYP, three bits.
    const SLEEP_TYPE: u8 = 2;
}

impl BusDevice for AcpiPower {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // No sleep state was left: WAK_STS is clear.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        const SLEEP: u64 = AcpiPower::SLEEP_CONTROL as u64;
        const RESET: u64 = AcpiPower::RESET as u64;
        match (offset, data) {
            (SLEEP, &[value])
                if value & Self::SLEEP_ENABLE != 0 && value >> Self::SLEEP_TYPE & 7 == Self::S5 =>
            {
                (self.0)(GuestEnd::PowerOff);
            }
            (RESET, &[Self::RESET_VALUE]) => (self.0)(GuestEnd::Reset),
            _ => {}
        }
    }
}

/// A guest writes its exit status to this port.
pub struct ExitPort(pub OnEnd);

impl BusDevice for ExitPort {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [status, ..]) = (offset, data) {
            (self.0)(GuestEnd::Status(*status));
        }
    }
}

/// pvpanic: the guest's kernel says that it panics.
///
/// Source: QEMU, docs/specs/pvpanic.rst.
pub struct PanicPort(pub OnEnd);

impl PanicPort {
    /// The only event that we take: a panic that no crash kernel handles.
    const PANICKED: u8 = 1 << 0;
}

impl BusDevice for PanicPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(events) = data.first_mut() {
            *events = Self::PANICKED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|event| event & Self::PANICKED != 0) {
            (self.0)(GuestEnd::Panic);
        }
    }
}

/// The command port of a keyboard controller that can do one thing: reset the machine. Kernels
/// without ACPI, and `reboot=k`, do it so.
pub struct KeyboardReset(pub OnEnd);

impl KeyboardReset {
    /// "Pulse output line", all lines but the one that resets left high.
    const RESET: u8 = 0xfe;
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status: both buffers empty. Ones would tell a kernel to wait for them.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [Self::RESET] {
            (self.0)(GuestEnd::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What the guest ends with when it writes `data` at `offset`.
    fn ends<D: BusDevice>(device: impl Fn(OnEnd) -> D, offset: u64, data: &[u8]) -> Vec<GuestEnd> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ends = seen.clone();
        device(Arc::new(move |end| ends.lock().unwrap().push(end))).write(offset, data);
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn each_port_ends_the_guest_its_own_way() {
        assert_eq!(ends(AcpiPower, 0, &[5 << 2 | 1 << 5]), [GuestEnd::PowerOff]);
        assert_eq!(ends(AcpiPower, 2, &[1]), [GuestEnd::Reset]);
        assert_eq!(ends(ExitPort, 0, &[7, 0, 0, 0]), [GuestEnd::Status(7)]);
        assert_eq!(ends(PanicPort, 0, &[1]), [GuestEnd::Panic]);
        assert_eq!(ends(KeyboardReset, 0, &[0xfe]), [GuestEnd::Reset]);
    }

    #[test]
    fn other_writes_end_nothing() {
        for (offset, data) in [(0, vec![5 << 2]), (0, vec![1 << 5]), (1, vec![1]), (2, vec![0])] {
            assert_eq!(ends(AcpiPower, offset, &data), []);
        }
        assert_eq!(ends(AcpiPower, 0, &[0x34, 0x34]), []);
        assert_eq!(ends(ExitPort, 1, &[7]), []);
        assert_eq!(ends(PanicPort, 0, &[2]), []);
        assert_eq!(ends(KeyboardReset, 0, &[0xd1]), []);
    }
}
