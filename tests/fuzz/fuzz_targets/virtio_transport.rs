//! Any accesses to the registers, the configuration space and the rings of virtio devices on PCI:
//! whatever a driver did, resetting the device and starting it by the rules works.
#![no_main]

use std::io;
use std::sync::{Arc, OnceLock};

use casemate_devices::bus::BusDevice;
use casemate_devices::doorbell::Doorbells;
use casemate_devices::interrupt::{Message, MessageInterrupt, MessageInterrupts};
use casemate_devices::io_thread::IoThread;
use casemate_devices::memory::{DeviceMemory, SharedPages};
use casemate_devices::outlet::Outlet;
use casemate_devices::pci::{Ecam, MmioWindow, PciRoot};
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::balloon::{Balloon, Discard};
use casemate_devices::virtio::console::Console;
use casemate_devices::virtio::pci::{Host, VirtioPci};
use casemate_devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const WINDOW: u32 = 0xc000_0000;
const BAR_SIZE: u64 = 0x4000;
const MEMORY_SIZE: u64 = 1 << 20;

/// Interrupts, doorbells and pages of a host that has none.
struct Nothing;

impl MessageInterrupts for Nothing {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MessageInterrupt>>> {
        Ok((0..count).map(|_| Arc::new(Nothing) as Arc<dyn MessageInterrupt>).collect())
    }
}

impl MessageInterrupt for Nothing {
    fn route(&self, _: Option<Message>) -> io::Result<()> {
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }

    fn notifier(&self) -> Option<&EventFd> {
        None
    }
}

impl Doorbells for Nothing {
    fn register(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unregister(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

impl Discard for Nothing {
    fn discard(&self, _: GuestAddress, _: u64) -> io::Result<()> {
        Ok(())
    }
}

struct Machine {
    ecam: Ecam,
    window: MmioWindow,
    memory: Arc<DeviceMemory>,
}

impl Machine {
    /// Slots 1 to 3: entropy, console, balloon.
    fn new(confidential: bool) -> Self {
        static THREAD: OnceLock<IoThread> = OnceLock::new();
        let thread = THREAD.get_or_init(|| IoThread::spawn("devices", || Ok(())).unwrap());
        let size = usize::try_from(MEMORY_SIZE).unwrap();
        let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let memory =
            DeviceMemory::new(backend, SharedPages::new(GuestAddress(MEMORY_SIZE)), true, ());
        memory.iommu().share(GuestAddress(0), size / 4 * 3).unwrap();
        let memory = Arc::new(memory);
        let host = Host {
            memory: Arc::clone(&memory),
            confidential,
            interrupts: Arc::new(Nothing),
            doorbells: Arc::new(Nothing),
        };
        let devices: [Box<dyn VirtioDevice>; 3] = [
            Box::new(Rng::new(thread.clone()).unwrap()),
            Box::new(Console::new(None, Outlet::sink().unwrap(), thread.clone())),
            Box::new(Balloon::new(Arc::new(Nothing), thread.clone())),
        ];
        let mut root = PciRoot::new(WINDOW..WINDOW + 0x10_0000);
        for device in devices {
            root.add(Box::new(VirtioPci::new(device, host.clone()).unwrap())).unwrap();
        }
        let root = Arc::new(root);
        let window = MmioWindow { root: Arc::clone(&root), start: WINDOW };
        let mut machine = Self { ecam: Ecam(root), window, memory };
        for slot in 1..4 {
            machine.put_back(slot);
        }
        machine
    }

    /// The BAR to where it was.
    fn put_back(&mut self, slot: u64) {
        let address = u64::from(WINDOW) + (slot - 1) * BAR_SIZE;
        let address = u32::try_from(address).unwrap();
        self.ecam.write(slot * 0x8000 + 0x10, &address.to_le_bytes());
        self.ecam.write(slot * 0x8000 + 0x04, &[6, 4]);
    }

    fn write(&mut self, slot: u64, offset: u64, data: &[u8]) {
        self.window.write((slot - 1) * BAR_SIZE + offset, data);
    }

    fn status(&mut self, slot: u64) -> u8 {
        let mut status = [0xff];
        self.window.read((slot - 1) * BAR_SIZE + 0x14, &mut status);
        status[0]
    }

    /// As a driver that keeps the rules does.
    fn start(&mut self, slot: u64) -> u8 {
        for status in [&[0][..], &[1], &[3]] {
            self.write(slot, 0x14, status);
        }
        for half in [0_u32, 1] {
            let mut features = [0; 4];
            self.write(slot, 0x00, &half.to_le_bytes());
            self.window.read((slot - 1) * BAR_SIZE + 4, &mut features);
            self.write(slot, 0x08, &half.to_le_bytes());
            self.write(slot, 0x0c, &features);
        }
        self.write(slot, 0x14, &[11]);
        for queue in 0..3_u16 {
            let rings = slot * 0x2_0000 + u64::from(queue) * 0x4000;
            self.write(slot, 0x16, &queue.to_le_bytes());
            self.write(slot, 0x18, &16_u16.to_le_bytes());
            for (field, ring) in [(0x20, rings), (0x28, rings + 0x1000), (0x30, rings + 0x2000)] {
                self.write(slot, field, &ring.to_le_bytes());
            }
            self.write(slot, 0x1c, &1_u16.to_le_bytes());
        }
        self.write(slot, 0x14, &[15]);
        self.status(slot)
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&confidential, accesses)) = input.split_first() else { return };
    let mut machine = Machine::new(confidential & 1 != 0);
    // What to do and where, then what to write there.
    for &[what, a, b, c, d, ref value @ ..] in accesses.as_chunks::<13>().0 {
        let slot = u64::from(what >> 6).max(1);
        let bytes = &value[..1 << (what >> 4 & 3)];
        let place = u64::from(u32::from_le_bytes([a, b, c, d]));
        match what & 7 {
            0 | 1 => machine.write(slot, place % BAR_SIZE, bytes),
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
});
