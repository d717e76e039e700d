//! Any accesses to the serial port: input reaches the guest whole and in order, output is written or
//! counted, and the transmitter is empty again in the end.
#![no_main]

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use casemate_devices::bus::BusDevice;
use casemate_devices::interrupt::Line;
use casemate_devices::legacy::Serial;
use casemate_devices::outlet::Outlet;
use casemate_fuzz::Script;
use libfuzzer_sys::fuzz_target;

/// Registers, and bits of them.
const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const DIVISOR_ACCESS: u8 = 1 << 7;
const LOOP: u8 = 1 << 4;

/// Longest input that is worth the time.
const STEPS: usize = 512;

struct Nowhere;

impl Line for Nowhere {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

fn read(serial: &mut Serial, offset: u64) -> u8 {
    let mut value = [0xff];
    serial.read(offset, &mut value);
    value[0]
}

fuzz_target!(|input: &[u8]| {
    let outlet = Outlet::sink().unwrap();
    let (mut serial, keyboard) = Serial::new(Arc::new(Nowhere), outlet, || Ok(())).unwrap();
    let mut script = Script(input);
    // Bytes sent to the guest, by itself in loopback too, and bytes that it received.
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let (mut line_control, mut modem_control) = (3, 0);
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        let what = script.u8();
        let offset = u64::from(what >> 4 & 7);
        let divisor = line_control & DIVISOR_ACCESS != 0;
        match what & 3 {
            0 => {
                let value = script.u8();
                match offset {
                    LINE_CONTROL => line_control = value,
                    MODEM_CONTROL => modem_control = value,
                    _ => {}
                }
                // Input and the guest's own bytes in one FIFO are told apart by no one.
                if offset != DATA || divisor || modem_control & LOOP == 0 {
                    serial.write(offset, &[value]);
                }
            }
            1 => {
                let has_data =
                    offset == DATA && !divisor && read(&mut serial, LINE_STATUS) & 1 != 0;
                let value = read(&mut serial, offset);
                received.extend(has_data.then_some(value));
            }
            2 => {
                let bytes = script.bytes(usize::from(what >> 2 & 31));
                sent.extend(&bytes[..keyboard.send(bytes)]);
            }
            _ => {
                // An offset without a register.
                serial.read(script.u64() | 8, &mut [0; 8][..usize::from(what >> 2 & 7)]);
                serial.write(script.u64() | 8, script.bytes(8));
            }
        }
    }
    serial.write(LINE_CONTROL, &[3]);
    serial.write(INTERRUPT_ENABLE, &[1]);
    while read(&mut serial, LINE_STATUS) & 1 != 0 {
        received.push(read(&mut serial, DATA));
    }
    assert_eq!(received, sent);
    let began = Instant::now();
    while read(&mut serial, LINE_STATUS) & 0x60 != 0x60 {
        assert!(began.elapsed() < Duration::from_secs(60), "the transmitter stays full");
        thread::yield_now();
    }
});
