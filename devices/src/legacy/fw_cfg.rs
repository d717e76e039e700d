//! The firmware configuration device: how QEMU's machines hand kernel, ACPI tables and memory map to
//! OVMF.
//!
//! Source: QEMU, docs/specs/fw_cfg.rst.

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress};

use crate::bus::BusDevice;
use crate::memory::DeviceMemory;

/// Numbers of items that are no files.
pub mod item {
    /// The kernel behind its setup code.
    pub const KERNEL: u16 = 0x11;
    /// The initial RAM disk.
    pub const INITRD: u16 = 0x12;
    /// The command line with its NUL.
    pub const COMMAND_LINE: u16 = 0x15;
    /// The setup code of the kernel.
    pub const SETUP: u16 = 0x18;
    /// Sizes of the four above, in bytes, u32: a guest asks for them first.
    pub const SIZES: [(u16, u16); 4] =
        [(KERNEL, 0x08), (INITRD, 0x0b), (COMMAND_LINE, 0x14), (SETUP, 0x17)];
    /// Number of processors, u16.
    pub const PROCESSORS: u16 = 0x05;
    pub(super) const SIGNATURE: u16 = 0x00;
    pub(super) const FEATURES: u16 = 0x01;
    pub(super) const DIRECTORY: u16 = 0x19;
    pub(super) const FIRST_FILE: u16 = 0x20;
}

/// Bytes that the guest can read; not copied.
pub type Content = Arc<dyn AsRef<[u8]> + Send + Sync>;

const SIGNATURE: &[u8; 4] = b"QEMU";
/// Items by port, and by DMA.
const FEATURES: u32 = 1 << 0 | 1 << 1;
/// Of a name in the directory, with a NUL at least.
const NAME_SIZE: usize = 56;

/// Bits of the control word.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// What the DMA register says when it is read.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

/// What the guest's firmware is told, by number.
#[derive(Clone, Default)]
pub struct Items {
    items: BTreeMap<u16, Content>,
    files: Vec<(&'static str, Content)>,
}

impl Items {
    /// Adds an item that has a number of its own.
    pub fn insert(&mut self, number: u16, content: Content) {
        self.items.insert(number, content);
    }

    /// Adds a file. Its name has less than 56 bytes.
    pub fn insert_file(&mut self, name: &'static str, content: Content) {
        debug_assert!(name.len() < NAME_SIZE);
        self.files.push((name, content));
    }

    /// All of them by number, those that say what there is included.
    fn numbered(mut self) -> BTreeMap<u16, Content> {
        let count = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let mut directory = count.to_be_bytes().to_vec();
        for (number, (name, content)) in (item::FIRST_FILE..).zip(self.files) {
            let size = u32::try_from((*content).as_ref().len()).unwrap_or(u32::MAX);
            directory.extend(size.to_be_bytes());
            directory.extend(number.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; NAME_SIZE];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(field);
            self.items.insert(number, content);
        }
        self.items.insert(item::DIRECTORY, Arc::new(directory));
        self.items.insert(item::SIGNATURE, Arc::new(*SIGNATURE));
        self.items.insert(item::FEATURES, Arc::new(FEATURES.to_le_bytes()));
        self.items
    }
}

/// The device, at its ports: a selector of two bytes, the selected item byte by byte behind it, and
/// the address of a DMA request. Nothing can be written.
pub struct FwCfg {
    items: BTreeMap<u16, Content>,
    memory: Arc<DeviceMemory>,
    selected: u16,
    /// How much of the selected item has been read.
    offset: usize,
    /// Upper half of the address of the next request.
    request_high: u32,
}

impl FwCfg {
    /// First of the ports.
    pub const BASE: u16 = 0x510;
    /// How many there are.
    pub const COUNT: u16 = 12;
    const SELECTOR: u64 = 0;
    const DATA: u64 = 1;
    const DMA_HIGH: u64 = 4;
    const DMA_LOW: u64 = 8;

    /// A device with these items; requests and their bytes are in `memory`.
    #[must_use]
    pub fn new(items: Items, memory: Arc<DeviceMemory>) -> Self {
        let items = items.numbered();
        Self { items, memory, selected: 0, offset: 0, request_high: 0 }
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.selected);
        item.and_then(|item| (**item).as_ref().get(self.offset..)).unwrap_or_default()
    }

    fn select(&mut self, number: u16) {
        self.selected = number;
        self.offset = 0;
    }

    /// Carries out the request at `address`: control word, length and address, big-endian. The
    /// control word then says how it went.
    fn request(&mut self, address: u64) {
        let mut request = [0; 16];
        if self.memory.read_slice(&mut request, GuestAddress(address)).is_err() {
            return tracing::debug!(address, "firmware configuration: no request in shared memory");
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, target @ ..] = request;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let target = u64::from_be_bytes(target);
        let failed = match control & (READ | SKIP | WRITE) {
            0 => false,
            READ => !self.read_to(target, length),
            SKIP => {
                self.advance(length);
                false
            }
            _ => true,
        };
        let status = if failed { ERROR } else { 0 };
        if self.memory.write_slice(&status.to_be_bytes(), GuestAddress(address)).is_err() {
            tracing::debug!(address, "firmware configuration: the request's page has gone");
        }
    }

    /// The next `length` bytes to guest memory; past the end of the item they are zeroes. Whether
    /// the memory took them.
    fn read_to(&mut self, target: u64, length: u32) -> bool {
        const ZEROES: [u8; 4096] = [0; 4096];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let there = self.rest().len().min(length);
        let mut done = self.write_to(target, &self.rest()[..there]);
        let mut at = there;
        while done && at < length {
            let zeroes = &ZEROES[..ZEROES.len().min(length - at)];
            done =
                target.checked_add(at as u64).is_some_and(|target| self.write_to(target, zeroes));
            at += zeroes.len();
        }
        self.offset = self.offset.saturating_add(length);
        done
    }

    fn write_to(&self, target: u64, bytes: &[u8]) -> bool {
        bytes.is_empty() || self.memory.write_slice(bytes, GuestAddress(target)).is_ok()
    }

    fn advance(&mut self, length: u32) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.offset = self.offset.saturating_add(length);
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (Self::DATA, [byte]) => {
                *byte = self.rest().first().copied().unwrap_or(0);
                self.advance(1);
            }
            (Self::DMA_HIGH, data @ [_, _, _, _]) => data.copy_from_slice(&DMA_SIGNATURE[..4]),
            (Self::DMA_LOW, data @ [_, _, _, _]) => data.copy_from_slice(&DMA_SIGNATURE[4..]),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (Self::SELECTOR, &[low, high]) => self.select(u16::from_le_bytes([low, high])),
            (Self::DMA_HIGH, &[a, b, c, d]) => self.request_high = u32::from_be_bytes([a, b, c, d]),
            (Self::DMA_LOW, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.request_high);
                let low = u32::from_be_bytes([a, b, c, d]);
                self.request(u64::from(high) << 32 | u64::from(low));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;
    use vm_memory::iommu::IommuMemory;

    use super::*;
    use crate::memory::SharedPages;

    const SHARED: u64 = 0x1000;

    /// A device with a kernel and a file; of its four pages of memory the second is shared.
    fn device() -> (FwCfg, Arc<DeviceMemory>) {
        let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let memory = IommuMemory::new(backend, SharedPages::new(GuestAddress(0x4000)), true, ());
        memory.iommu().share(GuestAddress(SHARED), 0x1000).unwrap();
        let memory = Arc::new(memory);
        let mut items = Items::default();
        items.insert(item::KERNEL, Arc::new(*b"a kernel"));
        items.insert_file("etc/e820", Arc::new([7; 20]));
        (FwCfg::new(items, memory.clone()), memory)
    }

    fn bytes(device: &mut FwCfg, count: usize) -> Vec<u8> {
        let mut byte = [0];
        (0..count)
            .map(|_| {
                device.read(1, &mut byte);
                byte[0]
            })
            .collect()
    }

    /// Asks for a transfer, and says what the control word is afterwards.
    fn request(
        device: &mut FwCfg,
        memory: &DeviceMemory,
        control: u32,
        length: u32,
        to: u64,
    ) -> u32 {
        let request = [&control.to_be_bytes()[..], &length.to_be_bytes(), &to.to_be_bytes()];
        memory.write_slice(&request.concat(), GuestAddress(SHARED)).unwrap();
        device.write(4, &[0; 4]);
        device.write(8, &u32::try_from(SHARED).unwrap().to_be_bytes());
        let mut control = [0; 4];
        memory.read_slice(&mut control, GuestAddress(SHARED)).unwrap();
        u32::from_be_bytes(control)
    }

    #[test]
    fn items_are_read_byte_by_byte() {
        let (mut device, _) = device();
        assert_eq!(bytes(&mut device, 6), b"QEMU\0\0");
        device.write(0, &item::KERNEL.to_le_bytes());
        assert_eq!(bytes(&mut device, 9), b"a kernel\0");
        device.write(0, &0x19_u16.to_le_bytes());
        let directory = bytes(&mut device, 4 + 64);
        assert_eq!(directory[..12], [0, 0, 0, 1, 0, 0, 0, 20, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..21], b"etc/e820\0");
        device.write(0, &0x20_u16.to_le_bytes());
        assert_eq!(bytes(&mut device, 20), [7; 20]);
        device.write(0, &0xffff_u16.to_le_bytes());
        assert_eq!(bytes(&mut device, 1), [0]);
        let mut signature = [0; 4];
        device.read(4, &mut signature);
        assert_eq!(&signature, b"QEMU");
    }

    #[test]
    fn requests_move_bytes_to_shared_memory_alone() {
        let (mut device, memory) = device();
        let kernel = u32::from(item::KERNEL) << 16 | SELECT;
        let to = SHARED + 0x100;
        memory.write_slice(&[9; 12], GuestAddress(to)).unwrap();
        assert_eq!(request(&mut device, &memory, kernel | SKIP, 2, 0), 0);
        assert_eq!(request(&mut device, &memory, READ, 8, to), 0);
        let mut found = [0; 12];
        memory.read_slice(&mut found, GuestAddress(to)).unwrap();
        assert_eq!(&found, b"kernel\0\0\x09\x09\x09\x09");
        for (control, length, to) in [
            (kernel | READ, 8, 0),
            (kernel | READ, 0x1000, to),
            (kernel | READ, 8, u64::MAX),
            (kernel | READ, u32::MAX, to),
            (kernel | WRITE, 1, to),
            (kernel | READ | SKIP, 1, to),
        ] {
            assert_eq!(request(&mut device, &memory, control, length, to), ERROR, "{control:#x}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_guest_does_is_fatal(
            accesses in prop::collection::vec((0_u64..16, any::<[u8; 8]>(), 1_usize..=8), 0..64),
            request in any::<[u8; 16]>(),
        ) {
            let (mut device, memory) = device();
            memory.write_slice(&request, GuestAddress(SHARED)).unwrap();
            for (offset, value, length) in accesses {
                let mut data = value;
                device.write(offset, &value[..length]);
                device.read(offset, &mut data[..length]);
            }
            device.write(8, &u32::try_from(SHARED).unwrap().to_be_bytes());
        }
    }
}
