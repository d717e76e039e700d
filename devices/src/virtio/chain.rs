//! Descriptor chains, checked before a device sees them.

use std::ops::Deref;

use vm_memory::{
    Bytes, GuestAddress, GuestMemory, Permissions, VolatileMemory, VolatileMemoryError,
    VolatileSlice,
};

use super::fault::{FaultReason, QueueFault};
use crate::memory::{DeviceMemory, Loan, Quick as _};

/// Flags of a descriptor (VIRTIO 1.2, section 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
const DESCRIPTOR_SIZE: u32 = 16;

/// A descriptor (VIRTIO 1.2, section 2.7.5).
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From its 16 bytes, read as a little-endian number.
    #[expect(clippy::cast_possible_truncation, reason = "each cast takes one field out")]
    fn from_le(bits: u128) -> Self {
        Self {
            address: bits as u64,
            len: (bits >> 64) as u32,
            flags: (bits >> 96) as u16,
            next: (bits >> 112) as u16,
        }
    }
}

/// A piece of guest memory, at least one byte long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A request as the driver gave it: buffers that the device may read, then buffers that it may
/// write, all in memory that the guest shared when the chain was taken from the queue.
///
/// It goes back with [`Virtqueue::complete`](super::Virtqueue::complete). It owns its list, so many
/// can be in flight.
#[derive(Debug)]
#[must_use = "a chain that is not completed is lost for the driver"]
pub struct Chain {
    pub(super) queue: u16,
    pub(super) head: u16,
    pub(super) buffers: Vec<Buffer>,
    /// How many of the buffers are readable.
    pub(super) split: usize,
    pub(super) readable_len: u32,
    pub(super) writable_len: u32,
}

impl Chain {
    /// Index of the chain's first descriptor. No other chain of this queue that is in flight and
    /// well-formed has the same.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Buffers that the device may read.
    pub fn readable(&self) -> &[Buffer] {
        &self.buffers[..self.split]
    }

    /// Buffers that the device may write.
    pub fn writable(&self) -> &[Buffer] {
        &self.buffers[self.split..]
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Fills `data` from the readable bytes, from byte `offset` on.
    ///
    /// # Errors
    /// If they are fewer, or the guest took the pages back.
    pub fn read(
        &self,
        memory: &DeviceMemory,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), QueueFault> {
        let mut done = 0;
        for part in pieces(self.readable(), offset, data.len()) {
            let len = part.len as usize;
            memory
                .read_quick(&mut data[done..done + len], part.address)
                .map_err(|_| self.fault(part))?;
            done += len;
        }
        if done == data.len() { Ok(()) } else { Err(self.short()) }
    }

    /// Writes `data` to the writable bytes, from byte `offset` on.
    ///
    /// # Errors
    /// If they are fewer, or the guest took the pages back.
    pub fn write(&self, memory: &DeviceMemory, offset: u32, data: &[u8]) -> Result<(), QueueFault> {
        let mut done = 0;
        for part in pieces(self.writable(), offset, data.len()) {
            let len = part.len as usize;
            memory
                .write_quick(&data[done..done + len], part.address)
                .map_err(|_| self.fault(part))?;
            done += len;
        }
        if done == data.len() { Ok(()) } else { Err(self.short()) }
    }

    /// Lends the kernel the buffers that the device may read, or write: for calls on
    /// [`Chain::for_each_readable`]'s pieces once that has returned.
    ///
    /// # Errors
    /// If the guest took the pages back.
    pub fn lend<M>(&self, memory: M, writable: bool) -> Result<Loan<M>, QueueFault>
    where
        M: Deref<Target = DeviceMemory>,
    {
        let buffers = if writable { self.writable() } else { self.readable() };
        let pieces = buffers.iter().map(|buffer| (buffer.address, buffer.len as usize));
        let taken_back = || match buffers.first() {
            Some(buffer) => self.fault(*buffer),
            None => self.short(),
        };
        Loan::of(memory, pieces).ok_or_else(taken_back)
    }

    /// Calls `each` with the host's view of every readable piece, from byte `offset` on, `len` bytes
    /// in all or as many as there are.
    ///
    /// # Errors
    /// If the guest took the pages back, or `each` failed.
    pub fn for_each_readable(
        &self,
        memory: &DeviceMemory,
        offset: u32,
        len: usize,
        each: impl FnMut(VolatileSlice<'_>) -> Result<(), VolatileMemoryError>,
    ) -> Result<(), QueueFault> {
        self.for_each(memory, pieces(self.readable(), offset, len), Permissions::Read, each)
    }

    /// As [`Chain::for_each_readable`], with the writable pieces.
    ///
    /// # Errors
    /// If the guest took the pages back, or `each` failed.
    pub fn for_each_writable(
        &self,
        memory: &DeviceMemory,
        offset: u32,
        len: usize,
        each: impl FnMut(VolatileSlice<'_>) -> Result<(), VolatileMemoryError>,
    ) -> Result<(), QueueFault> {
        self.for_each(memory, pieces(self.writable(), offset, len), Permissions::Write, each)
    }

    fn for_each(
        &self,
        memory: &DeviceMemory,
        pieces: impl Iterator<Item = Buffer>,
        access: Permissions,
        mut each: impl FnMut(VolatileSlice<'_>) -> Result<(), VolatileMemoryError>,
    ) -> Result<(), QueueFault> {
        for piece in pieces {
            if let Some(slice) = memory.piece(piece.address, piece.len as usize) {
                each(slice).map_err(|_| self.fault(piece))?;
                continue;
            }
            let slices = memory
                .get_slices(piece.address, piece.len as usize, access)
                .map_err(|_| self.fault(piece))?;
            for slice in slices {
                each(slice.map_err(|_| self.fault(piece))?).map_err(|_| self.fault(piece))?;
            }
        }
        Ok(())
    }

    /// The chain is no request of this device, for the reason given.
    pub fn malformed(&self, reason: &'static str) -> QueueFault {
        let address = self.buffers.first().map_or(0, |buffer| buffer.address.0);
        QueueFault { queue: self.queue, address, reason: FaultReason::Request(reason) }
    }

    fn short(&self) -> QueueFault {
        self.malformed("the chain is shorter than its request")
    }

    fn fault(&self, buffer: Buffer) -> QueueFault {
        QueueFault {
            queue: self.queue,
            address: buffer.address.0,
            reason: FaultReason::Buffer(buffer.len),
        }
    }
}

/// The part of `buffers` that starts `offset` bytes in and is `len` bytes long, or shorter where
/// they end.
fn pieces(buffers: &[Buffer], offset: u32, len: usize) -> impl Iterator<Item = Buffer> + '_ {
    let mut skip = offset;
    let mut left = u32::try_from(len).unwrap_or(u32::MAX);
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(buffer.len);
        skip -= skipped;
        let len = left.min(buffer.len - skipped);
        left -= len;
        // Does not wrap: the whole buffer was checked to lie in memory.
        let address = GuestAddress(buffer.address.0.wrapping_add(u64::from(skipped)));
        (len > 0).then_some(Buffer { address, len })
    })
}

/// Follows the descriptors of one chain into a [`Chain`].
pub(super) struct Walk<'a> {
    pub(super) memory: &'a DeviceMemory,
    pub(super) queue: u16,
    /// Guest-physical address of the queue's descriptor table.
    pub(super) table: u64,
    /// Size of the queue, and the most buffers that a chain may have.
    pub(super) size: u16,
    /// Whether RING_INDIRECT_DESC was negotiated.
    pub(super) indirect: bool,
}

impl Walk<'_> {
    /// The chain that begins with descriptor `head`; its list is kept in `buffers`, which is empty.
    pub(super) fn chain(&self, head: u16, buffers: Vec<Buffer>) -> Result<Chain, QueueFault> {
        let mut chain =
            Chain { queue: self.queue, head, buffers, split: 0, readable_len: 0, writable_len: 0 };
        let last = self.table(&mut chain, self.table, self.size, head)?;
        if let Some((address, table)) = last {
            if table.len == 0
                || table.len % DESCRIPTOR_SIZE != 0
                || table.len / DESCRIPTOR_SIZE > u32::from(self.size)
            {
                return Err(self.fault(address, FaultReason::IndirectTable(table.len)));
            }
            let size = u16::try_from(table.len / DESCRIPTOR_SIZE).unwrap_or(self.size);
            if let Some((address, _)) = self.table(&mut chain, table.address, size, 0)? {
                return Err(self.fault(address, FaultReason::IndirectNested));
            }
        }
        Ok(chain)
    }

    /// Adds the buffers that are linked from descriptor `index` of a table on. Ends at the last one,
    /// or at an indirect descriptor, which it returns with its address.
    fn table(
        &self,
        chain: &mut Chain,
        table: u64,
        size: u16,
        mut index: u16,
    ) -> Result<Option<(u64, Descriptor)>, QueueFault> {
        // Found once, where the table lies in one piece, instead of for each descriptor.
        let length = usize::from(size) * DESCRIPTOR_SIZE as usize;
        let whole = self.memory.piece(GuestAddress(table), length);
        loop {
            let offset = usize::from(index) * DESCRIPTOR_SIZE as usize;
            let address = table.checked_add(offset as u64);
            let address = address.ok_or_else(|| self.fault(table, FaultReason::Descriptor))?;
            if index >= size {
                return Err(self.fault(address, FaultReason::Index { index, size }));
            }
            let read = match &whole {
                Some(whole) => whole.get_ref(offset).ok().map(|descriptor| descriptor.load()),
                None => self.memory.read_obj(GuestAddress(address)).ok(),
            };
            let bits: u128 = read.ok_or_else(|| self.fault(address, FaultReason::Descriptor))?;
            let descriptor = Descriptor::from_le(u128::from_le(bits));
            if descriptor.flags & INDIRECT != 0 {
                if !self.indirect {
                    return Err(self.fault(address, FaultReason::IndirectNotNegotiated));
                }
                if descriptor.flags & NEXT != 0 {
                    return Err(self.fault(address, FaultReason::IndirectNested));
                }
                return Ok(Some((address, descriptor)));
            }
            self.add(chain, address, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(None);
            }
            index = descriptor.next;
        }
    }

    /// Adds the buffer of the descriptor that was found at `address`.
    fn add(
        &self,
        chain: &mut Chain,
        address: u64,
        descriptor: Descriptor,
    ) -> Result<(), QueueFault> {
        let buffer = Buffer { address: GuestAddress(descriptor.address), len: descriptor.len };
        let writable = descriptor.flags & WRITE != 0;
        // Every loop ends here: a chain cannot grow beyond the queue.
        if chain.buffers.len() >= usize::from(self.size) {
            return Err(self.fault(address, FaultReason::ChainLength(self.size)));
        }
        if buffer.len == 0 {
            return Err(self.fault(address, FaultReason::EmptyBuffer));
        }
        if !writable && chain.split < chain.buffers.len() {
            return Err(self.fault(address, FaultReason::Order));
        }
        let total = chain.readable_len.checked_add(chain.writable_len);
        if total.and_then(|total| total.checked_add(buffer.len)).is_none() {
            return Err(self.fault(address, FaultReason::ChainBytes));
        }
        let access = if writable { Permissions::Write } else { Permissions::Read };
        if !self.memory.has(buffer.address, buffer.len as usize, access) {
            return Err(self.fault(descriptor.address, FaultReason::Buffer(buffer.len)));
        }
        chain.buffers.push(buffer);
        if writable {
            chain.writable_len += buffer.len;
        } else {
            chain.split += 1;
            chain.readable_len += buffer.len;
        }
        Ok(())
    }

    fn fault(&self, address: u64, reason: FaultReason) -> QueueFault {
        QueueFault { queue: self.queue, address, reason }
    }
}
