//! Any accesses to the I/O APIC and any edges: a masked pin delivers nothing, each message goes to the
//! local APICs, and registers return what was written to them.
#![no_main]

use std::sync::{Arc, Mutex};

use casemate_devices::bus::BusDevice;
use casemate_devices::interrupt::{Line, Message};
use casemate_devices::legacy::{IoApic, Pin};
use casemate_fuzz::Script;
use libfuzzer_sys::fuzz_target;

const PINS: u8 = 8;
const MASKED: u32 = 1 << 16;
/// Delivery status and remote IRR.
const READ_ONLY: u32 = 1 << 12 | 1 << 14;

fn write(io_apic: &Mutex<IoApic>, index: u8, value: u32) {
    let mut io_apic = io_apic.lock().unwrap();
    io_apic.write(0x00, &[index]);
    io_apic.write(0x10, &value.to_le_bytes());
}

fn read(io_apic: &Mutex<IoApic>, index: u8) -> u32 {
    let mut io_apic = io_apic.lock().unwrap();
    let mut value = [0; 4];
    io_apic.write(0x00, &[index]);
    io_apic.read(0x10, &mut value);
    u32::from_le_bytes(value)
}

fuzz_target!(|input: &[u8]| {
    let delivered = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&delivered);
    let io_apic = IoApic::new(PINS, move |message: Message| {
        seen.lock().unwrap().push(message);
        Ok(())
    });
    let io_apic = Arc::new(Mutex::new(io_apic));
    let mut script = Script(input);
    while !script.is_empty() {
        let what = script.u8();
        let before = delivered.lock().unwrap().len();
        let width = usize::from(what >> 4 & 7) + 1;
        match what & 3 {
            0 => io_apic.lock().unwrap().write(script.u8().into(), script.bytes(width)),
            1 => io_apic.lock().unwrap().read(script.u64(), &mut [0; 8][..width]),
            2 => {
                let (index, value) = (script.u8(), script.u32());
                write(&io_apic, index, value);
                let found = read(&io_apic, index);
                let is_table = (0x10..0x10 + 2 * PINS).contains(&index);
                if is_table && index % 2 == 0 {
                    assert_eq!(found, value & !READ_ONLY);
                } else if is_table {
                    assert_eq!(found, value);
                }
            }
            _ => {
                let pin = script.u8();
                let entry = 0x10_u8.saturating_add(pin.saturating_mul(2));
                let masked = pin >= PINS || read(&io_apic, entry) & MASKED != 0;
                Pin { io_apic: Arc::clone(&io_apic), gsi: pin.into() }.trigger().unwrap();
                let count = delivered.lock().unwrap().len() - before;
                assert_eq!(count, usize::from(!masked));
            }
        }
        let delivered = delivered.lock().unwrap();
        // One access unmasks one pin at most.
        assert!(delivered.len() - before <= 1);
        assert!(delivered.iter().all(|message| message.address >> 20 == 0xfee));
    }
});
