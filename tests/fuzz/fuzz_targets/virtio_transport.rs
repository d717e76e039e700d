//! Any accesses to the registers, the configuration space and the rings of virtio devices on PCI:
//! whatever a driver did, resetting the device and starting it by the rules works.
#![no_main]

use casemate_devices::bus::BusDevice;
use casemate_devices::io_thread::IoThread;
use casemate_devices::outlet::Outlet;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::balloon::Balloon;
use casemate_devices::virtio::console::Console;
use casemate_devices::virtio::rng::Rng;
use casemate_fuzz::{MEMORY_SIZE, Machine};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Slots 1 to 3: entropy, console, balloon.
fn devices(thread: &IoThread) -> Vec<Box<dyn VirtioDevice>> {
    vec![
        Box::new(Rng::new(thread.clone()).unwrap()),
        Box::new(Console::new(None, Outlet::sink().unwrap(), thread.clone())),
        Box::new(Balloon::new(Machine::discard(), thread.clone())),
    ]
}

fuzz_target!(|input: &[u8]| {
    let Some((&confidential, accesses)) = input.split_first() else { return };
    let mut machine = Machine::new(confidential & 1 != 0, &devices);
    // What to do and where, then what to write there.
    for &[what, a, b, c, d, ref value @ ..] in accesses.as_chunks::<13>().0 {
        let slot = u64::from(what >> 6).max(1);
        let bytes = &value[..1 << (what >> 4 & 3)];
        let place = u64::from(u32::from_le_bytes([a, b, c, d]));
        match what & 7 {
            0 | 1 => machine.write(slot, place, bytes),
            2 => machine.window.read(place, &mut bytes.to_vec()),
            3 => machine.ecam.write(slot * 0x8000 + place % 0x200, bytes),
            4 => machine.ecam.read(slot * 0x8000 + place % 0x200, &mut bytes.to_vec()),
            5 => drop(machine.start(slot)),
            // Rings, descriptors, buffers; outside of memory it is an error.
            6 => drop(machine.memory.write_slice(bytes, GuestAddress(place % MEMORY_SIZE))),
            _ => machine.write(slot, 0x1000 + place % 12, bytes),
        }
    }
    for slot in 1..4 {
        machine.put_back(slot);
        // What the rings hold is the fuzzer's: a device may at once ask for the next reset.
        assert_eq!(machine.start(slot) & !64, 15);
        machine.write(slot, 0x14, &[0]);
        assert_eq!(machine.status(slot), 0);
    }
    machine.check_canaries();
});
