//! Virtio devices on a PCI bus, their memory, and a driver that can do anything.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use casemate_devices::bus::BusDevice;
use casemate_devices::doorbell::Doorbells;
use casemate_devices::interrupt::{Message, MessageInterrupt, MessageInterrupts};
use casemate_devices::io_thread::IoThread;
use casemate_devices::memory::{DeviceMemory, SharedPages};
use casemate_devices::pci::{Ecam, MmioWindow, PciRoot};
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::balloon::Discard;
use casemate_devices::virtio::pci::{Host, VirtioPci};
use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const WINDOW: u32 = 0xc000_0000;
const BAR_SIZE: u64 = 0x4000;

/// Bytes of guest memory.
pub const MEMORY_SIZE: u64 = 1 << 20;
/// First address of memory that the guest does not share: the last quarter.
pub const PRIVATE: u64 = MEMORY_SIZE / 4 * 3;
/// Content of private memory. No script can change it, so no byte of it may ever differ.
const CANARY: u8 = 0xc5;

/// Entries of each queue, and queues of each device.
const QUEUE_SIZE: u16 = 16;
const QUEUES: u16 = 3;

/// Devices for slots 1 and up, served on the thread given.
pub type Devices<'a> = &'a dyn Fn(&IoThread) -> Vec<Box<dyn VirtioDevice>>;

/// Interrupts, doorbells and discarded pages of a host that does not have any.
pub(crate) struct Nothing;

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

/// A worker that does nothing; the thread takes it in turn.
struct Idle;

impl MutEventSubscriber for Idle {
    fn init(&mut self, _: &mut EventOps<'_>) {}

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
}

/// A buffer of a chain.
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// Devices in slots 1 to 3, and memory of which the last quarter is private.
pub struct Machine {
    pub ecam: Ecam,
    pub window: MmioWindow,
    pub memory: Arc<DeviceMemory>,
    /// Number of devices, which are in the slots from 1 on.
    pub slots: u64,
    thread: IoThread,
    /// Available indices of the driver, by slot and queue.
    available: [[u16; QUEUES as usize]; 4],
    next_descriptor: [[u16; QUEUES as usize]; 4],
}

impl Machine {
    /// A machine with such devices, all on one thread.
    pub fn new(confidential: bool, devices: Devices<'_>) -> Self {
        static THREAD: OnceLock<IoThread> = OnceLock::new();
        let thread = THREAD.get_or_init(|| IoThread::spawn("devices", || Ok(())).unwrap()).clone();
        let size = usize::try_from(MEMORY_SIZE).unwrap();
        let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let private = usize::try_from(MEMORY_SIZE - PRIVATE).unwrap();
        backend.write_slice(&vec![CANARY; private], GuestAddress(PRIVATE)).unwrap();
        let memory =
            DeviceMemory::new(backend, SharedPages::new(GuestAddress(MEMORY_SIZE)), true, ());
        memory.iommu().share(GuestAddress(0), usize::try_from(PRIVATE).unwrap()).unwrap();
        let memory = Arc::new(memory);
        let host = Host {
            memory: Arc::clone(&memory),
            confidential,
            interrupts: Arc::new(Nothing),
            doorbells: Arc::new(Nothing),
        };
        let mut root = PciRoot::new(WINDOW..WINDOW + 0x10_0000);
        let devices = devices(&thread);
        let slots = u64::try_from(devices.len()).unwrap();
        for device in devices {
            root.add(Box::new(VirtioPci::new(device, host.clone()).unwrap())).unwrap();
        }
        let root = Arc::new(root);
        let window = MmioWindow { root: Arc::clone(&root), start: WINDOW };
        let (available, next_descriptor) = <_>::default();
        let mut machine =
            Self { ecam: Ecam(root), window, memory, slots, thread, available, next_descriptor };
        for slot in 1..=slots {
            machine.put_back(slot);
        }
        machine
    }

    /// Pages that a balloon gives back: nothing happens to them.
    pub fn discard() -> Arc<dyn Discard> {
        Arc::new(Nothing)
    }

    /// Moves a BAR to where it was at first.
    pub fn put_back(&mut self, slot: u64) {
        let address = u64::from(WINDOW) + (slot - 1) * BAR_SIZE;
        let address = u32::try_from(address).unwrap();
        self.ecam.write(slot * 0x8000 + 0x10, &address.to_le_bytes());
        self.ecam.write(slot * 0x8000 + 0x04, &[6, 4]);
    }

    /// Writes to a register of a device.
    pub fn write(&mut self, slot: u64, offset: u64, data: &[u8]) {
        self.window.write((slot - 1) * BAR_SIZE + offset % BAR_SIZE, data);
    }

    /// Reads the device status.
    pub fn status(&mut self, slot: u64) -> u8 {
        let mut status = [0xff];
        self.window.read((slot - 1) * BAR_SIZE + 0x14, &mut status);
        status[0]
    }

    /// Starts a device as a driver that keeps the rules does, but leaves the rings as they are. Returns
    /// the device status.
    pub fn start(&mut self, slot: u64) -> u8 {
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
        for queue in 0..QUEUES {
            let rings = rings(slot, queue);
            self.write(slot, 0x16, &queue.to_le_bytes());
            self.write(slot, 0x18, &QUEUE_SIZE.to_le_bytes());
            for (field, ring) in [(0x20, rings), (0x28, rings + 0x1000), (0x30, rings + 0x2000)] {
                self.write(slot, field, &ring.to_le_bytes());
            }
            self.write(slot, 0x1c, &1_u16.to_le_bytes());
        }
        self.write(slot, 0x14, &[15]);
        self.status(slot)
    }

    /// Starts a device with empty rings, as a driver that keeps all rules does.
    pub fn start_anew(&mut self, slot: u64) {
        for slot in 1..=self.slots {
            self.put_back(slot);
        }
        self.write(slot, 0x14, &[0]);
        for queue in 0..QUEUES {
            self.memory.write_slice(&[0; 0x4000], GuestAddress(rings(slot, queue))).unwrap();
        }
        self.available[usize::try_from(slot).unwrap()] = [0; QUEUES as usize];
        self.next_descriptor[usize::try_from(slot).unwrap()] = [0; QUEUES as usize];
        assert_eq!(self.start(slot), 15, "a driver that keeps the rules starts any device");
    }

    /// Offers a chain of buffers of any kind, and notifies the device.
    pub fn offer(&mut self, slot: u64, queue: u16, chain: &[Buffer]) {
        let (at, of) = (usize::try_from(slot).unwrap(), usize::from(queue));
        let rings = rings(slot, queue);
        let head = self.next_descriptor[at][of];
        for (number, buffer) in chain.iter().enumerate() {
            let index = self.next_descriptor[at][of];
            let next = (index + 1) % QUEUE_SIZE;
            self.next_descriptor[at][of] = next;
            let more = number + 1 < chain.len();
            let flags = u16::from(more) | u16::from(buffer.writable) << 1;
            let bits = u128::from(buffer.address)
                | u128::from(buffer.len) << 64
                | u128::from(flags) << 96
                | u128::from(next) << 112;
            let entry = GuestAddress(rings + 16 * u64::from(index));
            self.memory.write_slice(&bits.to_le_bytes(), entry).unwrap();
        }
        let available = self.available[at][of];
        let entry = rings + 0x1000 + 4 + 2 * u64::from(available % QUEUE_SIZE);
        self.memory.write_slice(&head.to_le_bytes(), GuestAddress(entry)).unwrap();
        let available = available.wrapping_add(1);
        self.available[at][of] = available;
        self.memory.write_slice(&available.to_le_bytes(), GuestAddress(rings + 0x1002)).unwrap();
        self.write(slot, 0x1000 + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// How many chains of a queue the device has used, modulo 2^16.
    pub fn used(&self, slot: u64, queue: u16) -> u16 {
        let mut index = [0; 2];
        self.memory.read_slice(&mut index, GuestAddress(rings(slot, queue) + 0x2002)).unwrap();
        u16::from_le_bytes(index)
    }

    /// Bytes that the device wrote to the chain that it used last.
    pub fn written(&self, slot: u64, queue: u16) -> u32 {
        let last = u64::from(self.used(slot, queue).wrapping_sub(1) % QUEUE_SIZE);
        let mut written = [0; 4];
        let entry = rings(slot, queue) + 0x2004 + 8 * last + 4;
        self.memory.read_slice(&mut written, GuestAddress(entry)).unwrap();
        u32::from_le_bytes(written)
    }

    /// Waits until the device has used `count` chains of a queue since it was started anew.
    pub fn wait_for(&self, slot: u64, queue: u16, count: u16) {
        let began = Instant::now();
        while self.used(slot, queue) != count {
            assert!(began.elapsed() < Duration::from_secs(60), "a request is not answered");
            self.settle();
        }
    }

    /// Returns when the devices' thread has taken up all notifications so far.
    pub fn settle(&self) {
        for _ in 0..2 {
            let id = self.thread.add(Box::new(Idle)).unwrap();
            self.thread.remove(id).unwrap();
        }
    }

    /// No device has touched memory that the guest does not share.
    pub fn check_canaries(&self) {
        let mut private = vec![0; usize::try_from(MEMORY_SIZE - PRIVATE).unwrap()];
        self.memory.get_backend().read_slice(&mut private, GuestAddress(PRIVATE)).unwrap();
        assert!(private.iter().all(|byte| *byte == CANARY), "private memory was written");
    }
}

/// Where the rings of a queue are: descriptors, then at 0x1000 and 0x2000 available and used ring.
const fn rings(slot: u64, queue: u16) -> u64 {
    slot * 0x2_0000 + queue as u64 * 0x4000
}
