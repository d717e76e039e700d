//! The 256 bytes that describe a device (PCI Local Bus 3.0, chapter 6).

/// Size in bytes. No device here has the extended space of PCI Express.
const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where capabilities may start.
const HEADER_END: usize = 0x40;
/// Header type: the device has more functions than the first.
const MULTIPLE_FUNCTIONS: u8 = 1 << 7;
/// Status: there is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// Bits of the command register (section 6.2.2) that mean something here: the device answers at the
/// address of its BAR; it may send messages; it may not use INTx, which nobody has, but Linux sets
/// the bit and reads it back.
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTX_DISABLE: u16 = 1 << 10;

/// Who a device is (section 6.2.1).
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device, as its vendor counts.
    pub device: u16,
    /// Class, subclass and programming interface, from the high byte to the low.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Vendor and device of the subsystem.
    pub subsystem: (u16, u16),
}

/// The configuration space of a function with header type 0.
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// The bits that the guest may change.
    writable: [u8; SIZE],
    /// Their values after a reset.
    initial: [u8; SIZE],
    /// Where the next capability goes, and where the offset of it is to be written.
    next: usize,
    link: usize,
    bar_size: u32,
}

impl ConfigSpace {
    /// For a device with a memory BAR of `bar_size` bytes (a power of two of at least 16), or
    /// without one (0).
    pub fn new(identity: Identity, bar_size: u32) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            initial: [0; SIZE],
            next: HEADER_END,
            link: CAPABILITIES,
            bar_size,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.set(0x2c, &identity.subsystem.0.to_le_bytes());
        space.set(0x2e, &identity.subsystem.1.to_le_bytes());
        let command = MEMORY | BUS_MASTER | INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        if bar_size > 0 {
            space.allow(BAR, &(!(bar_size - 1)).to_le_bytes());
        }
        space
    }

    /// Appends a capability (section 6.7): `body` follows its id and link, with the bits in
    /// `writable` left to the guest. Gives the capability's offset.
    ///
    /// # Panics
    /// If the space is full: which capabilities a device has does not depend on anybody's input.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.next;
        let link = u8::try_from(offset).expect("the capabilities of a device fit into 256 bytes");
        self.bytes[self.link] = link;
        self.bytes[STATUS] |= HAS_CAPABILITIES;
        self.bytes[offset] = id;
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.link = offset + 1;
        self.next = (offset + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// The BAR's size in bytes; 0 without one.
    pub fn bar_size(&self) -> u32 {
        self.bar_size
    }

    /// Sets the BAR's address, a multiple of its size.
    pub fn set_bar(&mut self, address: u32) {
        self.set(BAR, &address.to_le_bytes());
    }

    /// Where the device answers now, if it does.
    pub fn bar(&self) -> Option<u32> {
        let bytes = [0, 1, 2, 3].map(|at| self.bytes[BAR + at]);
        (self.bar_size > 0 && self.command() & MEMORY != 0).then(|| u32::from_le_bytes(bytes))
    }

    /// Says that there are functions besides this one, which is the first.
    pub(super) fn has_more_functions(&mut self) {
        self.set(HEADER_TYPE, &[MULTIPLE_FUNCTIONS]);
    }

    /// Undoes what the guest wrote.
    pub fn reset(&mut self) {
        for ((byte, mask), initial) in self.bytes.iter_mut().zip(self.writable).zip(self.initial) {
            *byte = *byte & !mask | initial & mask;
        }
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// The guest reads. Bytes past the end are ones: there is no extended space.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// The guest writes: only the bits that are its to change do.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &byte) in (offset..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// Sets bytes, whether the guest may change them or not.
    pub(super) fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.initial[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_80_00,
            revision: 1,
            subsystem: (0x1af4, 0x1100),
        };
        ConfigSpace::new(identity, 0x4000)
    }

    fn dword(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_says_who_it_is() {
        let mut space = space();
        assert_eq!(dword(&space, 0), 0x1042_1af4);
        assert_eq!(dword(&space, 8), 0x0180_0001);
        assert_eq!(dword(&space, 0x2c), 0x1100_1af4);
        space.write(0, &[0; 8]);
        assert_eq!(dword(&space, 0), 0x1042_1af4, "the identity is not the guest's to change");
        assert_eq!(dword(&space, 256), u32::MAX);
        assert_eq!(dword(&space, 254) >> 16, 0xffff);
        space.write(usize::MAX - 8, &[0; 4]);
    }

    #[test]
    fn bars_can_be_sized_and_moved() {
        let mut space = space();
        space.set_bar(0xc000_0000);
        assert_eq!(space.bar(), None, "memory decoding is off at first");
        space.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(dword(&space, COMMAND) & 0xffff, 0x0406);
        assert_eq!(space.bar(), Some(0xc000_0000));
        space.write(BAR, &[0xff; 4]);
        assert_eq!(dword(&space, BAR), 0xffff_c000);
        space.write(BAR, &0xd123_4567_u32.to_le_bytes());
        assert_eq!(space.bar(), Some(0xd123_4000));
        space.reset();
        assert_eq!((dword(&space, COMMAND), dword(&space, BAR)), (0, 0xc000_0000));
        assert_eq!(dword(&space, 0), 0x1042_1af4);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(dword(&space, COMMAND) >> 20 & 1, 0);
        let first = space.add_capability(0x09, &[1, 2, 3], &[0, 0xf0, 0]);
        let second = space.add_capability(0x11, &[0; 10], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(dword(&space, COMMAND) >> 20 & 1, 1);
        assert_eq!(dword(&space, CAPABILITIES), 0x40);
        assert_eq!(dword(&space, 0x40), 0x0201_4809);
        assert_eq!(dword(&space, 0x48), 0x0000_0011);
        space.write(0x40, &[0xff; 4]);
        assert_eq!(dword(&space, 0x40), 0x0201_4809 | 0xf000_0000);
    }
}
