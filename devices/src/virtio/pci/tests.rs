use std::sync::Mutex;

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::layout::{COMMON, DEVICE, ISR, MSIX_TABLE, NOTIFY};
use super::*;
use crate::bus::BusDevice;
use crate::doorbell::testing::MockDoorbells;
use crate::interrupt::testing::MockInterrupts;
use crate::pci::{Ecam, MmioWindow, PciRoot};
use crate::virtio::testing::{MockQueue, memory};
use crate::virtio::{DeviceKind, FaultReason, QueueFault, Virtqueue};

const WINDOW: u32 = 0xc000_0000;
const RINGS: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

/// What the device under the transport went through.
#[derive(Default)]
struct Life {
    features: u64,
    queues: Vec<Option<Virtqueue>>,
    control: Option<DeviceControl>,
    resets: u32,
    config: [u8; 8],
}

/// A device with two queues that leaves all work to the test.
struct Puppet(Arc<Mutex<Life>>);

impl VirtioDevice for Puppet {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn features(&self) -> u64 {
        0b101
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.0.lock().unwrap().config;
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at).copied()).unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut life = self.0.lock().unwrap();
        for (at, &byte) in (offset..).zip(data) {
            if let Some(field) = usize::try_from(at).ok().and_then(|at| life.config.get_mut(at)) {
                *field = byte;
            }
        }
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        let first = activation.take_queue(0)?;
        let mut life = self.0.lock().unwrap();
        assert!(life.control.is_none(), "activated twice");
        life.features = activation.features;
        life.queues = vec![Some(first), activation.take_queue(1).ok()];
        life.control = Some(activation.control);
        Ok(())
    }

    fn reset(&mut self) {
        let mut life = self.0.lock().unwrap();
        life.queues.clear();
        life.control = None;
        life.resets += 1;
    }
}

/// The device on a bus, and the driver's hands.
struct Bench {
    ecam: Ecam,
    window: MmioWindow,
    bar: u32,
    life: Arc<Mutex<Life>>,
    memory: Arc<DeviceMemory>,
    interrupts: MockInterrupts,
    doorbells: Arc<MockDoorbells>,
    rings: [MockQueue; 2],
}

fn bench(confidential: bool, doorbells: MockDoorbells) -> Bench {
    let (life, memory) = (Arc::new(Mutex::new(Life::default())), memory());
    let (interrupts, doorbells) = (MockInterrupts::default(), Arc::new(doorbells));
    let host = Host {
        memory: Arc::clone(&memory),
        confidential,
        interrupts: Arc::new(interrupts.clone()),
        doorbells: doorbells.clone(),
    };
    let device = VirtioPci::new(Box::new(Puppet(Arc::clone(&life))), host).unwrap();
    let mut root = PciRoot::new(WINDOW..WINDOW + 0x10_0000);
    root.add(Box::new(device)).unwrap();
    let root = Arc::new(root);
    let mut ecam = Ecam(Arc::clone(&root));
    ecam.write(0x8004, &[0x06, 0x04]);
    let rings = [MockQueue::new(&memory, RINGS, 16), MockQueue::new(&memory, RINGS + 0x1_0000, 8)];
    let window = MmioWindow { root, start: WINDOW };
    Bench { ecam, window, bar: WINDOW, life, memory, interrupts, doorbells, rings }
}

impl Bench {
    fn write(&mut self, offset: u32, data: &[u8]) {
        self.window.write(u64::from(self.bar - WINDOW + offset), data);
    }

    fn read<const N: usize>(&mut self, offset: u32) -> [u8; N] {
        let mut data = [0xff; N];
        self.window.read(u64::from(self.bar - WINDOW + offset), &mut data);
        data
    }

    fn status(&mut self) -> u8 {
        self.read::<1>(COMMON + 0x14)[0]
    }

    fn set_status(&mut self, status: u8) -> u8 {
        self.write(COMMON + 0x14, &[status]);
        self.status()
    }

    fn offered(&mut self) -> u64 {
        let mut features = 0;
        for half in 0..3_u32 {
            self.write(COMMON, &half.to_le_bytes());
            let bits = u64::from(u32::from_le_bytes(self.read(COMMON + 4)));
            features |= bits.checked_shl(32 * half).unwrap_or(0);
        }
        features
    }

    fn accept(&mut self, features: u64) {
        for (half, bits) in [(0_u32, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(COMMON + 8, &half.to_le_bytes());
            self.write(COMMON + 12, &u32::try_from(bits).unwrap().to_le_bytes());
        }
    }

    /// Up to and with FEATURES_OK.
    fn negotiate(&mut self) {
        self.set_status(1);
        self.set_status(3);
        let offered = self.offered();
        self.accept(offered);
        assert_eq!(self.set_status(11), 11);
    }

    fn set_up_queue(&mut self, index: u16) {
        let ring = &self.rings[usize::from(index)];
        let (size, addresses) =
            (ring.size, [ring.table(), ring.available_ring(), ring.used_ring()]);
        self.write(COMMON + 0x16, &index.to_le_bytes());
        self.write(COMMON + 0x18, &size.to_le_bytes());
        self.write(COMMON + 0x1a, &(index + 1).to_le_bytes());
        for (field, address) in (0..).zip(addresses) {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            self.write(COMMON + 0x20 + 8 * field, &[a, b, c, d]);
            self.write(COMMON + 0x24 + 8 * field, &[e, f, g, h]);
        }
        self.write(COMMON + 0x1c, &1_u16.to_le_bytes());
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up_queue(0);
        self.set_up_queue(1);
        assert_eq!(self.set_status(15), 15);
    }

    /// Enables MSI-X, all vectors open; vector 0 is for configuration changes.
    fn enable_msix(&mut self) {
        for vector in 0..3 {
            self.write(MSIX_TABLE + vector * 16, &0xfee0_0000_u64.to_le_bytes());
            self.write(MSIX_TABLE + vector * 16 + 8, &u64::from(vector).to_le_bytes());
        }
        self.write(COMMON + 0x10, &0_u16.to_le_bytes());
        assert_eq!(self.config::<1>(0x40), [0x11]);
        self.ecam.write(0x8042, &0x8000_u16.to_le_bytes());
    }

    fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        self.ecam.read(0x8000 + offset, &mut data);
        data
    }

    fn needs_reset(&mut self) -> bool {
        self.status() & 64 != 0
    }
}

#[test]
fn a_driver_finds_every_structure() {
    let mut b = bench(false, MockDoorbells::default());
    assert_eq!(u32::from_le_bytes(b.config(0)), 0x1042_1af4);
    let (mut at, mut found) = (u64::from(b.config::<1>(0x34)[0]), Vec::new());
    while at != 0 {
        let [id, next, len, kind] = b.config(at);
        let (bar, offset, size) =
            (b.config::<1>(at + 4)[0], b.config::<4>(at + 8), b.config::<4>(at + 12));
        if id == 9 {
            assert_eq!(bar, 0);
            found.push((kind, len, u32::from_le_bytes(offset), u32::from_le_bytes(size)));
        }
        at = u64::from(next);
    }
    let expected = [
        (1, 16, COMMON, 0x38),
        (3, 16, ISR, 1),
        (4, 16, DEVICE, 0x800),
        (2, 20, NOTIFY, 8),
        (5, 20, 0, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_driver_starts_uses_and_resets_a_device() {
    let mut b = bench(false, MockDoorbells::default());
    assert_eq!(b.offered(), 0b101 | 1 << 28 | 1 << 29 | 1 << 32);
    assert_eq!(u16::from_le_bytes(b.read(COMMON + 0x12)), 2);
    b.start();
    b.enable_msix();
    assert_eq!(b.life.lock().unwrap().features, 0b101 | 1 << 28 | 1 << 29 | 1 << 32);
    let hung: Vec<u64> = b.doorbells.addresses.lock().unwrap().iter().copied().collect();
    assert_eq!(hung, [0xc000_1000, 0xc000_1004]);

    b.rings[1].add(&[(DATA, 4)], &[]);
    b.write(NOTIFY + 4, &1_u16.to_le_bytes());
    {
        let mut life = b.life.lock().unwrap();
        let queue = life.queues[1].as_mut().unwrap();
        assert_eq!(queue.kick().read().unwrap(), 1);
        let chain = queue.next_chain().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify_if_needed().unwrap();
        life.control.as_ref().unwrap().config_changed();
    }
    assert_eq!(b.rings[1].used(), (0, 0));
    let counts = [0, 1, 2].map(|vector| b.interrupts.of(vector).count());
    assert_eq!(counts, [1, 0, 1]);
    assert_eq!((b.read(ISR), b.read(ISR)), ([2], [0]), "reading the ISR status clears it");
    assert_eq!(b.read(COMMON + 0x15), [1], "a new configuration");

    assert_eq!(b.set_status(0), 0);
    assert_eq!(b.life.lock().unwrap().resets, 1);
    assert!(b.doorbells.addresses.lock().unwrap().is_empty());
    b.write(COMMON + 0x16, &0_u16.to_le_bytes());
    assert_eq!(b.read::<2>(COMMON + 0x1a), [0xff; 2]);
    b.start();
}

#[test]
fn without_msix_the_isr_tells() {
    let mut b = bench(false, MockDoorbells::default());
    b.start();
    b.rings[0].add(&[(DATA, 4)], &[]);
    {
        let mut life = b.life.lock().unwrap();
        let queue = life.queues[0].as_mut().unwrap();
        let chain = queue.next_chain().unwrap().unwrap();
        queue.complete(chain, 0).unwrap();
        queue.notify_if_needed().unwrap();
    }
    assert_eq!(b.read(ISR), [1]);
}

#[test]
fn notifications_reach_the_device_without_doorbells() {
    let mut b = bench(false, MockDoorbells { closed: true, ..MockDoorbells::default() });
    b.write(NOTIFY, &[0; 2]);
    b.start();
    assert!(b.life.lock().unwrap().queues[0].as_ref().unwrap().kick().read().is_err());
    b.write(NOTIFY, &[0; 2]);
    b.write(NOTIFY, &[0; 4]);
    b.write(NOTIFY + 0xff8, &[0; 8]);
    assert_eq!(b.life.lock().unwrap().queues[0].as_ref().unwrap().kick().read().unwrap(), 2);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut b = bench(false, MockDoorbells::default());
    b.start();
    let hung = |b: &Bench| b.doorbells.addresses.lock().unwrap().first().copied();
    b.ecam.write(0x8004, &[0, 0]);
    b.ecam.write(0x8010, &[0xff; 4]);
    assert_eq!(hung(&b), Some(0xc000_1000), "nothing moves while decoding is off");
    b.ecam.write(0x8010, &0xc008_0000_u32.to_le_bytes());
    b.ecam.write(0x8004, &[6, 0]);
    b.bar = 0xc008_0000;
    assert_eq!(hung(&b), Some(0xc008_1000));
    assert_eq!(b.status(), 15);
}

#[test]
fn features_must_be_the_offered_and_the_needed() {
    for (confidential, accepted, fine) in [
        (false, 1 << 32, true),
        (false, 1 << 32 | 0b101, true),
        (false, 0, false),
        (false, 1 << 32 | 0b10, false),
        (false, 1 << 33 | 1 << 32, false),
        (true, 1 << 32, false),
        (true, 1 << 33, false),
        (true, 1 << 33 | 1 << 32, true),
    ] {
        let mut b = bench(confidential, MockDoorbells::default());
        assert_eq!(b.offered() >> 33 & 1, u64::from(confidential));
        b.set_status(1);
        b.set_status(3);
        b.accept(accepted);
        let status = if fine { 11 } else { 3 };
        assert_eq!(b.set_status(11), status, "{confidential} {accepted:#x}");
    }
}

#[test]
fn steps_out_of_order_do_nothing() {
    let mut b = bench(false, MockDoorbells::default());
    // Features before DRIVER, FEATURES_OK without DRIVER, DRIVER_OK without FEATURES_OK.
    b.accept(1 << 32);
    assert_eq!(b.set_status(9), 1);
    assert_eq!(b.set_status(7), 3);
    assert_eq!(b.set_status(15), 3, "the features came too early");
    b.accept(1 << 32);
    assert_eq!(b.set_status(15), 11, "DRIVER_OK comes after FEATURES_OK, not with it");
    assert_eq!(b.set_status(2), 11, "bits cannot be taken back");
    b.accept(0);
    b.set_up_queue(0);
    b.write(COMMON + 0x18, &8_u16.to_le_bytes());
    assert_eq!(u16::from_le_bytes(b.read(COMMON + 0x18)), 16, "an enabled queue is not changed");
    b.write(COMMON + 0x1c, &0_u16.to_le_bytes());
    assert_eq!(u16::from_le_bytes(b.read(COMMON + 0x1c)), 1);
    assert_eq!(b.set_status(15), 15);
    b.set_up_queue(1);
    assert_eq!(u16::from_le_bytes(b.read(COMMON + 0x1c)), 0, "too late for more queues");
    let life = b.life.lock().unwrap();
    assert_eq!((life.features, life.queues[1].is_none()), (1 << 32, true));
}

#[test]
fn function_reset_undoes_all_that_the_guest_did() {
    const ADVANCED_FEATURES: u8 = 0x13;
    let mut bench = bench(false, MockDoorbells::default());
    bench.start();
    assert_eq!(bench.status(), 0xf);
    let config = |ecam: &mut Ecam, at: u64| {
        let mut byte = [0];
        ecam.read(0x8000 + at, &mut byte);
        byte[0]
    };
    // As Linux finds it.
    let mut at = config(&mut bench.ecam, 0x34);
    while config(&mut bench.ecam, at.into()) != ADVANCED_FEATURES {
        at = config(&mut bench.ecam, u64::from(at) + 1);
        assert_ne!(at, 0, "there is such a capability");
    }
    let at = u64::from(at);
    assert_eq!([2, 3, 5].map(|offset| config(&mut bench.ecam, at + offset)), [6, 3, 0]);
    bench.ecam.write(0x8010, &(WINDOW + 0x8000).to_le_bytes());
    bench.ecam.write(0x8000 + at + 4, &[1]);
    assert_eq!(bench.life.lock().unwrap().resets, 1);
    assert_eq!(config(&mut bench.ecam, at + 4), 0, "and it is over");
    assert_eq!(config(&mut bench.ecam, 4), 0, "memory decoding is off");
    // The driver puts back what was there before.
    bench.ecam.write(0x8004, &[0x06, 0x04]);
    bench.bar = WINDOW;
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.read(MSIX_TABLE), [0, 0, 0, 0]);
    assert_eq!(bench.read(MSIX_TABLE + 12), [1, 0, 0, 0]);
    bench.start();
    assert_eq!(bench.status(), 0xf);
}

#[test]
fn queues_that_cannot_work_ask_for_a_reset() {
    let mut b = bench(false, MockDoorbells::default());
    b.negotiate();
    for size in [0, 3, 32, 0xffff_u16] {
        b.write(COMMON + 0x18, &size.to_le_bytes());
        assert_eq!(u16::from_le_bytes(b.read(COMMON + 0x18)), 16);
    }
    b.write(COMMON + 0x16, &2_u16.to_le_bytes());
    assert_eq!(b.read(COMMON + 0x18), [0; 8], "there is no third queue");
    b.memory.iommu().withdraw(GuestAddress(RINGS + 0x8000), 0x1000).unwrap();
    b.set_up_queue(0);
    assert!(b.needs_reset());
    assert_eq!(b.set_status(15), 75, "it stays down until the reset");
    assert_eq!(b.set_status(0), 0);
    b.memory.iommu().share(GuestAddress(RINGS), 0x1_0000).unwrap();
    b.start();

    b.set_status(0);
    b.negotiate();
    assert_eq!(b.set_status(15), 79, "the device cannot start without its first queue");
    b.set_status(0);
    b.start();
    assert!(!b.needs_reset());
}

#[test]
fn a_fault_is_told_to_the_driver() {
    let mut b = bench(false, MockDoorbells::default());
    b.start();
    b.enable_msix();
    let control = b.life.lock().unwrap().control.clone().unwrap();
    let fault = QueueFault { queue: 1, address: 0x1000, reason: FaultReason::EmptyBuffer };
    control.needs_reset(&fault);
    assert!(b.needs_reset());
    assert_eq!(b.interrupts.of(0).count(), 1);
    assert_eq!(b.set_status(0), 0);
}

#[test]
fn vectors_that_do_not_exist_are_none() {
    let mut b = bench(false, MockDoorbells::default());
    for offset in [COMMON + 0x10, COMMON + 0x1a] {
        b.write(offset, &2_u16.to_le_bytes());
        assert_eq!(b.read(offset), 2_u16.to_le_bytes());
        b.write(offset, &3_u16.to_le_bytes());
        assert_eq!(b.read(offset), [0xff; 2]);
    }
}

#[test]
fn the_bar_is_reached_from_configuration_space() {
    let mut b = bench(false, MockDoorbells::default());
    let mut at = u64::from(b.config::<1>(0x34)[0]);
    while b.config::<4>(at)[3] != 5 {
        at = u64::from(b.config::<2>(at)[1]);
    }
    b.ecam.write(0x8000 + at + 8, &DEVICE.to_le_bytes());
    b.ecam.write(0x8000 + at + 12, &4_u32.to_le_bytes());
    b.ecam.write(0x8000 + at + 16, b"abcd");
    assert_eq!(&b.config::<4>(at + 16), b"abcd");
    assert_eq!(&b.life.lock().unwrap().config, b"abcd\0\0\0\0");
    b.life.lock().unwrap().config = *b"12345678";
    assert_eq!(&b.config::<4>(at + 16), b"1234");
    for (offset, len) in [(2, 4), (u32::MAX, 1), (0x4000, 4), (DEVICE, 3), (DEVICE, 0)] {
        b.ecam.write(0x8000 + at + 8, &offset.to_le_bytes());
        b.ecam.write(0x8000 + at + 12, &u32::to_le_bytes(len));
        b.ecam.write(0x8000 + at + 16, b"wxyz");
        b.config::<4>(at + 16);
    }
    assert_eq!(&b.life.lock().unwrap().config, b"12345678");
}

/// One access of a driver that does as it likes.
#[derive(Clone, Debug)]
enum Access {
    Bar(u32, Vec<u8>, bool),
    Config(u16, Vec<u8>, bool),
    Worker(usize),
}

fn access() -> impl Strategy<Value = Access> {
    let data = || {
        let bytes = prop_oneof![Just(0_u8), Just(1), Just(0xff), any::<u8>()];
        prop::sample::select(vec![1_usize, 2, 4, 8])
            .prop_flat_map(move |len| prop::collection::vec(bytes.clone(), len))
    };
    let status = prop::sample::select(vec![0_u8, 1, 3, 11, 15, 0x80]);
    let offset = prop_oneof![
        0..0x40_u32,
        0x400..0x408_u32,
        0x800..0x820_u32,
        0x1000..0x1010_u32,
        0x2000..0x2040_u32,
        0..0x4000_u32
    ];
    prop_oneof![
        6 => (offset, data(), any::<bool>()).prop_map(|(at, data, write)| Access::Bar(at, data, write)),
        4 => status.prop_map(|status| Access::Bar(0x14, vec![status], true)),
        2 => Just(Access::Bar(0x1c, vec![1, 0], true)),
        2 => (0..0x200_u16, data(), any::<bool>()).prop_map(|(at, data, write)| Access::Config(at, data, write)),
        1 => (0..2_usize).prop_map(Access::Worker),
    ]
}

proptest! {
    #[test]
    fn any_accesses(prepared in any::<bool>(), accesses in prop::collection::vec(access(), 1..200)) {
        let mut b = bench(true, MockDoorbells::default());
        if prepared {
            b.start();
        }
        for access in accesses {
            match access {
                Access::Bar(at, data, true) => b.write(at, &data),
                Access::Bar(at, mut data, false) => b.window.read(u64::from(at), &mut data),
                Access::Config(at, data, true) => b.ecam.write(0x8000 + u64::from(at), &data),
                Access::Config(at, mut data, false) => b.ecam.read(0x8000 + u64::from(at), &mut data),
                Access::Worker(index) => {
                    let mut life = b.life.lock().unwrap();
                    if let Some(Some(queue)) = life.queues.get_mut(index) {
                        while let Ok(Some(chain)) = queue.next_chain() {
                            if queue.complete(chain, 0).is_err() {
                                break;
                            }
                        }
                        let _ = queue.notify_if_needed();
                    }
                }
            }
        }
        // Whatever happened, a reset and a driver that keeps the rules make it work.
        b.ecam.write(0x8010, &WINDOW.to_le_bytes());
        b.ecam.write(0x8004, &[6, 4]);
        prop_assert_eq!(b.set_status(0), 0);
        b.start();
        let hung = b.doorbells.addresses.lock().unwrap().len();
        prop_assert_eq!(hung, 2);
    }
}
