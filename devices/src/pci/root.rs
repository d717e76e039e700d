//! The host bridge and its bus: where configuration and BAR accesses find their device.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PciDevice;
use super::bridges::Bridge;
use crate::bus::BusDevice;
use crate::legacy::{GuestEnd, OnEnd};

/// Devices on the bus, host bridge included (PCI Local Bus 3.0, section 3.2.2.3.4).
const SLOTS: usize = 32;
/// Configuration space of one function, memory-mapped.
const FUNCTION_SIZE: u64 = 4096;
/// Functions of a slot.
const FUNCTIONS: usize = 8;
/// No BAR: no access has this offset.
const NOWHERE: u64 = u64::MAX;

/// The LPC bridge's place.
const LPC_SLOT: usize = 31;

/// Why a device did not get a place on the bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// A bus has 32 slots, of which bridges have one or two.
    #[error("the PCI bus is full: it takes {most} devices")]
    Slots {
        /// Devices that it takes.
        most: usize,
    },
    /// The board's window is too small.
    #[error("no room for a BAR of {size:#x} bytes in the PCI window {}-{:#x}", window_start(.window), .window.end)]
    Window {
        /// Size of the BAR.
        size: u32,
        /// The window.
        window: Range<u32>,
    },
}

fn window_start(window: &Range<u32>) -> String {
    format!("{:#x}", window.start)
}

/// Bus 0. Its devices are there from the start, in the order in which they were added, each at the
/// next place and the next aligned address of the window: the same devices are the same machine.
pub struct PciRoot {
    window: Range<u32>,
    /// First address that no BAR has.
    free: u64,
    bridge: Function,
    /// Of the slots from 1 on.
    devices: Vec<Function>,
    /// Devices in a slot, as functions of it: one, or as many as it takes for all to have a place. So
    /// a guest that counts them finds them in their order.
    in_a_slot: usize,
    /// In slot 31, if there is one.
    lpc: Option<Function>,
}

/// A device's place on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its slot.
    pub slot: u8,
    /// Its function.
    pub function: u8,
}

struct Function {
    device: Mutex<Box<dyn PciDevice>>,
    bar_size: u32,
    /// Where the BAR is, or [`NOWHERE`]. Follows the device's configuration space.
    bar: AtomicU64,
}

impl PciRoot {
    /// A bus with its host bridge, and a `window` of guest-physical addresses for BARs. The board
    /// also describes that window to the guest (ACPI `_CRS`).
    pub fn new(window: Range<u32>) -> Self {
        let free = u64::from(window.start);
        let bridge = Function::bridge(Bridge::host());
        Self { window, free, bridge, devices: Vec::new(), in_a_slot: 1, lpc: None }
    }

    /// With the bridges of QEMU's q35 machine, for OVMF. `pmbase` is the first port of the power
    /// management registers, a multiple of 128. Whatever else OVMF writes to the bridges has no
    /// effect: things are where it wants them.
    #[must_use]
    pub fn like_q35(mut self, pmbase: u16) -> Self {
        self.lpc = Some(Function::bridge(Bridge::ich9_lpc(pmbase)));
        self.bridge = Function::bridge(Bridge::q35_host());
        self
    }

    /// With places for `count` devices, which are added then. Where they are not more than slots, each
    /// has one.
    #[must_use]
    pub fn for_devices(mut self, count: usize) -> Self {
        self.in_a_slot = count.div_ceil(self.slots()).clamp(1, FUNCTIONS);
        self
    }

    /// Slots for devices.
    const fn slots(&self) -> usize {
        if self.lpc.is_some() { LPC_SLOT - 1 } else { SLOTS - 1 }
    }

    /// Gives `device` the next place, and its BAR the next address. Returns the place.
    ///
    /// # Errors
    /// If there is no place or no address left.
    pub fn add(&mut self, mut device: Box<dyn PciDevice>) -> Result<Place, AddError> {
        let (index, most) = (self.devices.len(), self.slots() * self.in_a_slot);
        if index >= most {
            return Err(AddError::Slots { most });
        }
        let place = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let function = place(index % self.in_a_slot);
        let place = Place { slot: place(1 + index / self.in_a_slot), function };
        if self.in_a_slot > 1 && function == 0 {
            device.config_mut().has_more_functions();
        }
        let bar_size = device.config().bar_size();
        if bar_size > 0 {
            let address = self.free.next_multiple_of(u64::from(bar_size));
            let end = address + u64::from(bar_size);
            let address = u32::try_from(address)
                .ok()
                .filter(|_| end <= u64::from(self.window.end))
                .ok_or_else(|| AddError::Window { size: bar_size, window: self.window.clone() })?;
            device.config_mut().set_bar(address);
            self.free = end;
        }
        let bar = AtomicU64::new(device.config().bar().map_or(NOWHERE, u64::from));
        self.devices.push(Function { device: Mutex::new(device), bar_size, bar });
        Ok(place)
    }

    /// Size in bytes of the memory-mapped configuration space of the bus (for ACPI MCFG: segment 0,
    /// bus 0 to 0).
    pub const fn ecam_size() -> u64 {
        (SLOTS * FUNCTIONS) as u64 * FUNCTION_SIZE
    }

    /// The function and register behind an offset in the memory-mapped configuration space.
    fn function(&self, offset: u64) -> Option<(&Function, usize)> {
        let (function, register) = (offset / FUNCTION_SIZE, offset % FUNCTION_SIZE);
        let function = usize::try_from(function).ok()?;
        let function = match (function / FUNCTIONS, function % FUNCTIONS, &self.lpc) {
            (0, 0, _) => &self.bridge,
            (LPC_SLOT, 0, Some(lpc)) => lpc,
            (slot, function, _) if function < self.in_a_slot => {
                self.devices.get(slot.checked_sub(1)? * self.in_a_slot + function)?
            }
            _ => return None,
        };
        Some((function, usize::try_from(register).ok()?))
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, register)) = self.function(offset) {
            function.lock().read_config(register, data);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.function(offset) {
            let mut device = function.lock();
            device.write_config(register, data);
            let bar = device.config().bar().map_or(NOWHERE, u64::from);
            function.bar.store(bar, Ordering::Release);
        }
    }

    /// The function whose BAR holds all `len` bytes at `address`, and the offset in it.
    fn decode(&self, address: u64, len: usize) -> Option<(&Function, u32)> {
        self.devices.iter().find_map(|function| {
            let offset = address.checked_sub(function.bar.load(Ordering::Acquire))?;
            let end = offset.checked_add(len as u64)?;
            let offset = u32::try_from(offset).ok()?;
            (end <= u64::from(function.bar_size)).then_some((function, offset))
        })
    }
}

impl Function {
    fn bridge(bridge: Bridge) -> Self {
        Self { device: Mutex::new(Box::new(bridge)), bar_size: 0, bar: AtomicU64::new(NOWHERE) }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn PciDevice>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory-mapped configuration space, [`PciRoot::ecam_size`] bytes.
pub struct Ecam(pub Arc<PciRoot>);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }
}

/// The addresses at which BARs can be.
pub struct MmioWindow {
    /// Whose BARs.
    pub root: Arc<PciRoot>,
    /// The first address: that of [`PciRoot::new`]'s window, or lower where the guest's firmware
    /// moves BARs.
    pub start: u32,
}

impl BusDevice for MmioWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let address = u64::from(self.start).saturating_add(offset);
        if let Some((function, offset)) = self.root.decode(address, data.len()) {
            data.fill(0);
            function.lock().read_bar(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let address = u64::from(self.start).saturating_add(offset);
        if let Some((function, offset)) = self.root.decode(address, data.len()) {
            function.lock().write_bar(offset, data);
        }
    }
}

/// The ports 0xCF8 to 0xCFF (PCI Local Bus 3.0, section 3.2.2.3.2), for firmware that knows no
/// memory-mapped configuration.
///
/// Port 0xCF9 among them is the chipset's reset register.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: u32,
    on_end: OnEnd,
}

impl ConfigPorts {
    /// First of the ports.
    pub const BASE: u16 = 0xcf8;
    /// How many there are.
    pub const COUNT: u16 = 8;
    /// Offset of the reset register (RST_CNT), and the bit that resets.
    const RESET: u64 = 1;
    const RESET_CPU: u8 = 1 << 2;

    /// The ports of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>, on_end: OnEnd) -> Self {
        Self { root, address: 0, on_end }
    }

    /// Where an access to the data port leads in the memory-mapped configuration space.
    fn target(&self, port: u64) -> Option<u64> {
        let (enabled, bus) = (self.address >> 31 != 0, self.address >> 16 & 0xff);
        let (function, register) = (self.address >> 8 & 0xff, self.address & 0xfc);
        let byte = port.checked_sub(4)?;
        (enabled && bus == 0)
            .then(|| u64::from(function) * FUNCTION_SIZE + u64::from(register) + byte)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if let Some(target) = self.target(offset) {
            self.root.read_config(target, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, &[a, b, c, d]) = (offset, data) {
            self.address = u32::from_le_bytes([a, b, c, d]);
        } else if let (Self::RESET, &[value]) = (offset, data) {
            if value & Self::RESET_CPU != 0 {
                (self.on_end)(GuestEnd::Reset);
            }
        } else if let Some(target) = self.target(offset) {
            self.root.write_config(target, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{ConfigSpace, Identity};

    /// A device whose BAR is memory.
    struct Scratch(ConfigSpace, Vec<u8>);

    fn scratch(size: u32) -> Box<dyn PciDevice> {
        let identity =
            Identity { vendor: 1, device: 2, class: 0xff_00_00, revision: 0, subsystem: (0, 0) };
        Box::new(Scratch(ConfigSpace::new(identity, size), vec![0; size as usize]))
    }

    impl PciDevice for Scratch {
        fn config(&self) -> &ConfigSpace {
            &self.0
        }

        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.0
        }

        fn write_config(&mut self, offset: usize, data: &[u8]) {
            self.0.write(offset, data);
        }

        fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
            let start = offset as usize;
            data.copy_from_slice(&self.1[start..start + data.len()]);
        }

        fn write_bar(&mut self, offset: u32, data: &[u8]) {
            let start = offset as usize;
            self.1[start..start + data.len()].copy_from_slice(data);
        }
    }

    const HEADER_TYPE: u64 = 0x0e;

    const fn slot(slot: u8) -> Place {
        Place { slot, function: 0 }
    }

    fn read<const N: usize>(device: &mut dyn BusDevice, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        device.read(offset, &mut data);
        data
    }

    #[test]
    fn addresses_follow_the_order() {
        let mut root = PciRoot::new(0xc000_1000..0xc002_0000);
        assert_eq!(root.add(scratch(0x1000)), Ok(slot(1)));
        assert_eq!(root.add(scratch(0x4000)), Ok(slot(2)));
        assert_eq!(root.add(scratch(0x1000)), Ok(slot(3)));
        let error = root.add(scratch(0x2_0000)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no room for a BAR of 0x20000 bytes in the PCI window 0xc0001000-0xc0020000"
        );
        let mut ecam = Ecam(Arc::new(root));
        let bar = |ecam: &mut Ecam, slot: u64| u32::from_le_bytes(read(ecam, slot * 0x8000 + 0x10));
        assert_eq!(
            [1, 2, 3].map(|slot| bar(&mut ecam, slot)),
            [0xc000_1000, 0xc000_4000, 0xc000_8000]
        );
    }

    #[test]
    fn the_bus_takes_31_devices() {
        let mut root = PciRoot::new(0xc000_0000..0xd000_0000);
        for number in 1..32 {
            assert_eq!(root.add(scratch(16)), Ok(slot(number)));
        }
        let error = root.add(scratch(16)).unwrap_err();
        assert_eq!(error.to_string(), "the PCI bus is full: it takes 31 devices");
    }

    #[test]
    fn more_devices_than_slots_are_functions_in_their_order() {
        let window = 0xc000_0000..0xd000_0000;
        // Three in each of 31 slots, or of 30.
        for root in [PciRoot::new(window.clone()), PciRoot::new(window.clone()).like_q35(0x600)] {
            let slots = if root.lpc.is_some() { 30 } else { 31 };
            let mut root = root.for_devices(63);
            for number in 0..slots * 3 {
                let place = Place { slot: 1 + number / 3, function: number % 3 };
                assert_eq!(root.add(scratch(16)), Ok(place));
            }
            let most = usize::from(slots) * 3;
            assert_eq!(root.add(scratch(16)), Err(AddError::Slots { most }));
            let mut ecam = Ecam(Arc::new(root));
            let mut header = |slot: u64, function: u64| {
                read(&mut ecam, (slot * 8 + function) * 4096 + HEADER_TYPE)
            };
            assert_eq!([header(0, 0), header(31, 0)], [[0], [if slots == 31 { 0x80 } else { 0 }]]);
            for slot in 1..=u64::from(slots) {
                let functions = [0, 1, 2, 3, 7].map(|function| header(slot, function)[0]);
                assert_eq!(functions, [0x80, 0, 0, 0xff, 0xff]);
            }
        }
        let all = PciRoot::new(0xc000_0000..0xd000_0000).for_devices(usize::MAX);
        assert_eq!((all.in_a_slot, all.slots()), (8, 31));
    }

    #[test]
    fn a_q35_has_an_lpc_bridge_in_the_last_slot() {
        let mut root = PciRoot::new(0xc000_0000..0xd000_0000).like_q35(0x600);
        for number in 1..31 {
            assert_eq!(root.add(scratch(16)), Ok(slot(number)));
        }
        assert_eq!(root.add(scratch(16)), Err(AddError::Slots { most: 30 }));
        let mut ecam = Ecam(Arc::new(root));
        assert_eq!(read(&mut ecam, 0), 0x29c0_8086_u32.to_le_bytes());
        assert_eq!(read(&mut ecam, 31 * 0x8000), 0x2918_8086_u32.to_le_bytes());
        assert_eq!(read(&mut ecam, 31 * 0x8000 + 0x40), 0x601_u32.to_le_bytes());
        assert_eq!(read(&mut ecam, 31 * 0x8000 + 0x44), [0x80]);
    }

    #[test]
    fn one_of_the_ports_resets() {
        let resets = Arc::new(AtomicU64::new(0));
        let seen = resets.clone();
        let on_end: OnEnd = Arc::new(move |end| {
            assert_eq!(end, GuestEnd::Reset);
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let mut ports = ConfigPorts::new(Arc::new(PciRoot::new(0xc000_0000..0xd000_0000)), on_end);
        ports.write(1, &[0x02]);
        assert_eq!(resets.load(Ordering::Relaxed), 0);
        ports.write(1, &[0x06]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn both_ways_to_configuration_space_agree() {
        let mut root = PciRoot::new(0xc000_0000..0xc001_0000);
        root.add(scratch(0x1000)).unwrap();
        let root = Arc::new(root);
        let (mut ecam, mut ports) =
            (Ecam(Arc::clone(&root)), ConfigPorts::new(root, Arc::new(|_| {})));
        assert_eq!(read(&mut ecam, 0), 0x0d57_8086_u32.to_le_bytes());
        assert_eq!(read(&mut ecam, 0x8000), [1, 0, 2, 0]);
        assert_eq!(read(&mut ecam, 0x9000), [0xff; 4], "there is one function");
        assert_eq!(read(&mut ecam, 0x1_0000), [0xff; 4], "and no second device");
        assert_eq!(read(&mut ecam, u64::MAX), [0xff; 8]);
        ecam.write(u64::MAX, &[0; 8]);
        assert_eq!(read(&mut ports, 4), [0xff; 4]);
        ports.write(0, &0x8000_0800_u32.to_le_bytes());
        assert_eq!(read(&mut ports, 0), 0x8000_0800_u32.to_le_bytes());
        assert_eq!(read(&mut ports, 4), [1, 0, 2, 0]);
        assert_eq!(read(&mut ports, 6), [2, 0]);
        ports.write(0, &0x8001_0800_u32.to_le_bytes());
        assert_eq!(read(&mut ports, 4), [0xff; 4], "there is one bus");
    }

    #[test]
    fn a_bar_answers_where_the_guest_put_it() {
        let mut root = PciRoot::new(0xc000_0000..0xc001_0000);
        root.add(scratch(0x1000)).unwrap();
        let root = Arc::new(root);
        let (mut ecam, mut window) =
            (Ecam(Arc::clone(&root)), MmioWindow { root, start: 0xc000_0000 });
        window.write(0, &[1, 2, 3, 4]);
        assert_eq!(read(&mut window, 0), [0xff; 4], "memory decoding is off");
        ecam.write(0x8004, &[0x02]);
        window.write(0x10, &[1, 2, 3, 4]);
        assert_eq!(read(&mut window, 0x10), [1, 2, 3, 4]);
        ecam.write(0x8010, &0xc000_8000_u32.to_le_bytes());
        assert_eq!(read(&mut window, 0x10), [0xff; 4]);
        assert_eq!(read(&mut window, 0x8010), [1, 2, 3, 4]);
        assert_eq!(read(&mut window, 0x8ffe), [0xff; 4], "not astride the end");
        ecam.write(0x8010, &[0xff; 4]);
        assert_eq!(read(&mut window, 0x8010), [0xff; 4]);
        assert_eq!(read(&mut window, u64::MAX), [0xff; 8]);
    }
}
