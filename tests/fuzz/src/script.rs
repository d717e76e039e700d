//! Scripts: any bytes, read as what a driver does.

use casemate_devices::bus::BusDevice;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{Buffer, MEMORY_SIZE, Machine, PRIVATE};

/// Longest input that is worth the time.
const STEPS: usize = 256;
/// Where buffers are, behind the rings.
const BUFFERS: u64 = 0x8_0000;

/// The rest of a script. Past its end it is zeroes.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn number(&mut self, width: usize) -> u64 {
        let mut number = [0; 8];
        let bytes = self.bytes(width);
        number[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        (self.number(2) & 0xffff) as u16
    }

    pub fn u32(&mut self) -> u32 {
        (self.number(4) & 0xffff_ffff) as u32
    }

    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One buffer. With bytes of the script in it if the device may only read it.
    fn buffer(&mut self, machine: &Machine) -> Buffer {
        let kind = self.u8();
        let writable = kind & 1 != 0;
        let address = match kind >> 1 & 7 {
            // Anywhere, private memory, or across its border.
            0 => self.u64(),
            1 => PRIVATE + self.number(2),
            2 => PRIVATE - self.number(1),
            // Another queue's rings, and its own.
            3 => self.number(3) % BUFFERS,
            _ => BUFFERS + self.number(2),
        };
        let len = if kind & 0x10 != 0 { self.u32() } else { self.u8().into() };
        if !writable {
            let count = if kind & 0x20 != 0 { len.min(64) } else { len.min(16) };
            let bytes = self.bytes(count as usize);
            // An error where it is not the guest's to share.
            let _ = machine.memory.write_slice(bytes, GuestAddress(address));
        }
        Buffer { address, len, writable }
    }

    fn chain(&mut self, machine: &mut Machine, slot: u64, queue: u16) {
        let count = usize::from(self.u8() % 5) + 1;
        let chain: Vec<_> = (0..count).map(|_| self.buffer(machine)).collect();
        machine.offer(slot, queue, &chain);
    }
}

/// Starts all devices, and does as the script says: chains in their queues, accesses to registers,
/// configuration space and memory, resets. `host` does something at the other end of a device.
pub fn drive(
    machine: &mut Machine,
    script: &mut Script<'_>,
    mut host: impl FnMut(&mut Machine, &mut Script<'_>),
) {
    for slot in 1..=machine.slots {
        machine.start_anew(slot);
    }
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        let what = script.u8();
        let slot = 1 + u64::from(what >> 6) % machine.slots;
        match what & 15 {
            0..=5 => script.chain(machine, slot, u16::from(what >> 4 & 3) % 3),
            6 => {
                let (offset, width) = (script.u16(), script.u8() & 7);
                let value = script.bytes(usize::from(width) + 1).to_vec();
                machine.write(slot, offset.into(), &value);
            }
            7 => {
                let (offset, width) = (script.u16(), script.u8() & 7);
                machine.window.read(offset.into(), &mut vec![0; usize::from(width) + 1]);
            }
            8 => {
                let (offset, width) = (script.u8(), script.u8() & 3);
                let value = script.bytes(usize::from(width) + 1).to_vec();
                machine.ecam.write(slot * 0x8000 + u64::from(offset), &value);
            }
            9 => {
                let (place, width) = (script.u32(), script.u8() & 15);
                let value = script.bytes(usize::from(width) + 1);
                // An error where it is not the guest's to share.
                let place = GuestAddress(u64::from(place) % MEMORY_SIZE);
                let _ = machine.memory.write_slice(value, place);
            }
            10 => machine.start_anew(slot),
            11 => machine.write(slot, 0x14, &[script.u8()]),
            12 => machine.settle(),
            _ => host(machine, script),
        }
    }
    machine.settle();
    machine.check_canaries();
    for slot in 1..=machine.slots {
        machine.start_anew(slot);
    }
}
