//! Any accesses to the firmware configuration device, and any DMA requests: items are what they were,
//! transfers reach memory that the guest shares, and no other.
#![no_main]

use std::sync::Arc;

use casemate_devices::bus::BusDevice;
use casemate_devices::legacy::fw_cfg::{FwCfg, Items, item};
use casemate_fuzz::{Machine, PRIVATE, Script};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const KERNEL: &[u8] = &[0x4b; 5000];
/// Addresses of a well-behaved driver's request and of its buffer for the item.
const REQUEST: u64 = 0x8_0000;
const ROOM: u64 = 0x8_1000;
/// Control word: SELECT and READ.
const SELECT_AND_READ: u32 = 1 << 3 | 1 << 1;

/// Requests the transfer of `length` bytes, at any place in memory or nowhere.
fn request(device: &mut FwCfg, machine: &Machine, at: u64, control: u32, length: u32, to: u64) {
    let request = [&control.to_be_bytes()[..], &length.to_be_bytes(), &to.to_be_bytes()].concat();
    // An error where it is not the guest's to share.
    let _ = machine.memory.write_slice(&request, GuestAddress(at));
    device.write(4, &((at >> 32) as u32).to_be_bytes());
    device.write(8, &(at as u32).to_be_bytes());
}

fuzz_target!(|input: &[u8]| {
    let machine = Machine::new(true, &|_| Vec::new());
    let mut items = Items::default();
    items.insert(item::KERNEL, Arc::new(KERNEL));
    items.insert_file("etc/e820", Arc::new([7; 20]));
    let mut device = FwCfg::new(items, Arc::clone(&machine.memory));
    let mut script = Script(input);
    while !script.is_empty() {
        let what = script.u8();
        let width = usize::from(what >> 4 & 7) + 1;
        match what & 7 {
            0 => device.read(script.u8().into(), &mut [0; 8][..width]),
            1 => device.write(script.u8().into(), script.bytes(width)),
            2 => device.write(0, &script.u16().to_le_bytes()),
            3 => {
                let at = script.u64();
                request(&mut device, &machine, at, script.u32(), script.u32(), script.u64());
            }
            kind => {
                // Near the border of private memory, and mostly of a length that fits.
                let at = [REQUEST, PRIVATE - 8, PRIVATE - 16, PRIVATE][usize::from(kind & 3)];
                let (control, length) = (script.u32(), script.u16().into());
                request(
                    &mut device,
                    &machine,
                    at,
                    control,
                    length,
                    PRIVATE - u64::from(script.u16()),
                );
            }
        }
    }
    let control = u32::from(item::KERNEL) << 16 | SELECT_AND_READ;
    let length = u32::try_from(KERNEL.len()).unwrap();
    request(&mut device, &machine, REQUEST, control, length, ROOM);
    let (mut status, mut content) = ([0xff; 4], vec![0; KERNEL.len()]);
    machine.memory.read_slice(&mut status, GuestAddress(REQUEST)).unwrap();
    machine.memory.read_slice(&mut content, GuestAddress(ROOM)).unwrap();
    assert_eq!(status, [0; 4]);
    assert_eq!(content, KERNEL);
    machine.check_canaries();
});
