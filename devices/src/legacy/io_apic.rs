//! A small I/O APIC: edges only, as many pins as the board needs.
//!
//! Linux programs each pin at boot, at several exits a pin, so few pins make a fast boot.
//!
//! Source: Intel 82093AA datasheet, section 3.2.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::BusDevice;
use crate::interrupt::{Line, Message};

/// Offsets of the two registers.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// What the select register selects.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;

/// Bits 0 to 7 of the version register; the number of the last pin is in bits 16 to 23.
const VERSION_NUMBER: u32 = 0x11;

/// Bits of an entry.
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the controller's.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// The registers of an I/O APIC, and the way to the local ones.
pub struct IoApic {
    deliver: Box<dyn Fn(Message) -> io::Result<()> + Send>,
    id: u32,
    select: u8,
    table: Vec<Entry>,
}

/// One input's entry of the redirection table.
#[derive(Clone)]
struct Entry {
    bits: u64,
    /// An edge arrived while the pin was masked.
    pending: bool,
}

/// One of its pins.
pub struct Pin {
    /// The I/O APIC that it belongs to.
    pub io_apic: Arc<Mutex<IoApic>>,
    /// Its number. Edges of one that does not exist are lost.
    pub gsi: u32,
}

impl IoApic {
    /// An I/O APIC with so many pins, all masked, which calls `deliver` with each message.
    pub fn new(pins: u8, deliver: impl Fn(Message) -> io::Result<()> + Send + 'static) -> Self {
        let table = vec![Entry { bits: MASKED, pending: false }; pins.into()];
        Self { deliver: Box::new(deliver), id: 0, select: 0, table }
    }

    fn edge(&mut self, pin: usize) -> io::Result<()> {
        let Some(entry) = self.table.get_mut(pin) else { return Ok(()) };
        entry.pending = entry.bits & MASKED != 0;
        if entry.pending { Ok(()) } else { (self.deliver)(message(entry.bits)) }
    }

    fn version(&self) -> u32 {
        let last = u32::try_from(self.table.len().saturating_sub(1)).unwrap_or(u32::MAX);
        VERSION_NUMBER | last << 16
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => self.version(),
            index => {
                match place(index).and_then(|(pin, half)| Some((self.table.get(pin)?, half))) {
                    Some((entry, Half::Low)) => low(entry.bits),
                    Some((entry, Half::High)) => low(entry.bits >> 32),
                    None => 0,
                }
            }
        }
    }

    fn write_selected(&mut self, value: u32) {
        const LOW: u64 = u32::MAX as u64;
        if self.select == ID {
            self.id = value & 0x0f00_0000;
            return;
        }
        let value = u64::from(value);
        let Some((pin, half)) = place(self.select) else { return };
        let Some(entry) = self.table.get_mut(pin) else { return };
        entry.bits = match half {
            Half::Low => entry.bits & !LOW | value & !READ_ONLY,
            Half::High => entry.bits & LOW | value << 32,
        };
        if entry.pending
            && let Err(error) = self.edge(pin)
        {
            tracing::warn!(pin, %error, "I/O APIC: an interrupt was lost");
        }
    }
}

/// Half of an entry of the table, which one register holds.
#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

/// The pin behind an index of the registers, and the half of its entry.
fn place(index: u8) -> Option<(usize, Half)> {
    let offset = usize::from(index.checked_sub(TABLE)?);
    Some((offset / 2, if offset.is_multiple_of(2) { Half::Low } else { Half::High }))
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => self.select.into(),
            WINDOW => self.read_selected(),
            _ => return,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECT, [index, ..]) => self.select = *index,
            (WINDOW, &[a, b, c, d]) => self.write_selected(u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
    }
}

impl Line for Pin {
    fn trigger(&self) -> io::Result<()> {
        let mut io_apic = self.io_apic.lock().unwrap_or_else(PoisonError::into_inner);
        io_apic.edge(usize::try_from(self.gsi).unwrap_or(usize::MAX))
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0)
}

/// The message that an entry stands for (Intel SDM volume 3, section 11.11): destination and its
/// mode go into the address, vector and delivery mode into the data. It is always an edge.
fn message(entry: u64) -> Message {
    const LOCAL_APICS: u64 = 0xfee0_0000;
    let (destination, logical) = (entry >> 56, entry >> 11 & 1);
    Message { address: LOCAL_APICS | destination << 12 | logical << 2, data: low(entry & 0x7ff) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(io_apic: &mut IoApic, index: u8) -> u32 {
        io_apic.write(SELECT, &[index, 0, 0, 0]);
        let mut value = [0; 4];
        io_apic.read(WINDOW, &mut value);
        u32::from_le_bytes(value)
    }

    #[test]
    fn entries_become_messages() {
        // Vector 0x31, lowest priority, logical destination 3.
        let entry = 3 << 56 | 1 << 11 | 1 << 8 | 0x31;
        assert_eq!(message(entry), Message { address: 0xfee0_3004, data: 0x131 });
    }

    #[test]
    fn registers_answer_as_linux_asks() {
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let seen = delivered.clone();
        let mut io_apic = IoApic::new(8, move |message: Message| {
            seen.lock().unwrap().push(message.data);
            Ok(())
        });
        assert_eq!(read(&mut io_apic, VERSION), 0x0007_0011);
        assert_eq!(read(&mut io_apic, TABLE + 8), 0x1_0000);
        io_apic.write(WINDOW, &0x0001_5031_u32.to_le_bytes());
        assert_eq!(read(&mut io_apic, TABLE + 8), 0x1_0031);
        io_apic.write(SELECT, &[TABLE + 9]);
        io_apic.write(WINDOW, &0x0200_0000_u32.to_le_bytes());
        assert_eq!(io_apic.table[4].bits, 0x0200_0000_0001_0031);
        io_apic.edge(4).unwrap();
        assert!(delivered.lock().unwrap().is_empty(), "the pin is masked");
        io_apic.write(SELECT, &[TABLE + 8]);
        io_apic.write(WINDOW, &0x31_u32.to_le_bytes());
        assert_eq!(*delivered.lock().unwrap(), [0x31], "and delivers when it no longer is");
        io_apic.edge(4).unwrap();
        assert_eq!(*delivered.lock().unwrap(), [0x31, 0x31]);
        for index in [0x20, 0xff] {
            assert_eq!(read(&mut io_apic, index), 0);
            io_apic.write(WINDOW, &[0xff; 4]);
        }
    }
}
