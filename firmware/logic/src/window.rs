//! The header of the loader window: the unmeasured inputs. The firmware copies it into private
//! memory once and reads the copy; whatever it says must be harmless.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0x00 | 8 | magic, `CSMWINDW` |
//! | 0x08 | 4 | version, 1 |
//! | 0x0c | 4 | number of vCPUs; their APIC identifiers are 0 to that, less one |
//! | 0x10 | 8 | number of memory ranges |
//! | 0x18 | 16 | kernel file: offset in the window, size |
//! | 0x28 | 16 | initrd file: offset, size (0 without one) |
//! | 0x38 | 16 | command line with its NUL: offset, size |
//! | 0x48 | 16 each | memory ranges: start, size |
//! | | | zero up to the end of the page |

use core::fmt;

use crate::bytes::{put, u32_at, u64_at};
use crate::config::Config;
use crate::fatal::Fatal;
use crate::layout::{GRANULE, KERNEL, LOW_MEMORY_END, PAGE, WINDOW, WINDOW_END};

/// Bytes of the header. Payloads lie behind it.
pub const HEADER_SIZE: usize = 4096;

/// Memory ranges at most.
pub const MOST_RANGES: usize = 8;

/// Bytes of a command line at most, with its NUL.
pub const MOST_COMMAND_LINE: u64 = 2048;

/// What a header starts with.
pub const MAGIC: [u8; 8] = *b"CSMWINDW";
const VERSION: u32 = 1;
const RANGES: usize = 0x48;

/// Guest memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length.
    pub size: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} to {:#x}", self.start, self.end())
    }
}

impl Range {
    /// From `start` up to `end`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, size: end.saturating_sub(start) }
    }

    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The granules that it touches.
    #[must_use]
    pub const fn granules(self) -> Self {
        let start = self.start & !(GRANULE - 1);
        Self::between(start, self.end().next_multiple_of(GRANULE))
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub const fn has(self, address: u64) -> bool {
        self.start <= address && address < self.end()
    }

    /// Whether all of `other` lies in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// Where a payload lies in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Bytes from the window's start.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// What the host says of the machine, and where the payloads are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory: the first ranges, the others are empty.
    pub memory: [Range; MOST_RANGES],
    /// The kernel file.
    pub kernel: Payload,
    /// The initrd file.
    pub initrd: Payload,
    /// The command line with its NUL.
    pub command_line: Payload,
}

impl Header {
    /// The header as it stands in the window.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 0x08, &VERSION.to_le_bytes());
        put(&mut bytes, 0x0c, &self.vcpus.to_le_bytes());
        let count = self.ranges().count() as u64;
        put(&mut bytes, 0x10, &count.to_le_bytes());
        let payloads = [self.kernel, self.initrd, self.command_line];
        let pairs = payloads.map(|payload| (payload.offset, payload.size));
        let ranges = self.ranges().map(|range| (range.start, range.size));
        for (index, (first, second)) in pairs.into_iter().chain(ranges).enumerate() {
            put(&mut bytes, 0x18 + 16 * index, &first.to_le_bytes());
            put(&mut bytes, 0x20 + 16 * index, &second.to_le_bytes());
        }
        bytes
    }

    /// Reads a private copy of a header, and checks everything in it: whatever it says, a guest
    /// with it gets at most less than it should. `address_bits`: how many bits guest-physical
    /// addresses may have (below the C-bit).
    ///
    /// # Errors
    /// [`Fatal::Window`] if it is no header, has bytes without a meaning, or a payload leaves the window;
    /// [`Fatal::Machine`] if memory or vCPUs are impossible or more than the measured limits.
    pub fn from_copy(
        bytes: &[u8; HEADER_SIZE],
        config: &Config,
        address_bits: u32,
    ) -> Result<Self, Fatal> {
        let count = usize::try_from(u64_at(bytes, 0x10)).unwrap_or(usize::MAX);
        if !bytes.starts_with(&MAGIC) || u32_at(bytes, 0x08) != VERSION || count > MOST_RANGES {
            return Err(Fatal::Window);
        }
        // A private copy of bytes that nobody reads would be a page of the host's choice.
        let unused = bytes.iter().skip(RANGES + 16 * count);
        if unused.fold(0, |seen, byte| seen | byte) != 0 {
            return Err(Fatal::Window);
        }
        let pair =
            |index: usize| (u64_at(bytes, 0x18 + 16 * index), u64_at(bytes, 0x20 + 16 * index));
        let payload = |index| {
            let (offset, size) = pair(index);
            Payload { offset, size }
        };
        let mut memory = [Range::default(); MOST_RANGES];
        for (index, range) in memory.iter_mut().enumerate().take(count) {
            let (start, size) = pair(RANGES / 16 - 1 + index);
            *range = Range { start, size };
        }
        let [kernel, initrd, command_line] = [payload(0), payload(1), payload(2)];
        let header = Self { vcpus: u32_at(bytes, 0x0c), memory, kernel, initrd, command_line };
        header.check(count, config, address_bits)?;
        Ok(header)
    }

    fn check(&self, count: usize, config: &Config, address_bits: u32) -> Result<(), Fatal> {
        let in_window = |payload: Payload| {
            let room = WINDOW_END - WINDOW;
            payload.offset.is_multiple_of(PAGE)
                && payload.offset >= HEADER_SIZE as u64
                && payload.offset <= room
                && payload.size <= room - payload.offset
        };
        if ![self.kernel, self.initrd, self.command_line].into_iter().all(in_window)
            || self.command_line.size == 0
            || self.command_line.size > MOST_COMMAND_LINE
        {
            return Err(Fatal::Window);
        }
        if self.vcpus == 0 || self.vcpus > config.most_vcpus {
            return Err(Fatal::Machine);
        }
        let low = Range::between(0, LOW_MEMORY_END);
        let high = Range::between(4 << 30, 1 << address_bits.min(52));
        let (mut end, mut total) = (0, 0_u64);
        for range in &self.memory[..count] {
            let whole_pages = range.start.is_multiple_of(PAGE) && range.size.is_multiple_of(PAGE);
            let fits = range.start.checked_add(range.size).is_some()
                && (low.contains(*range) || high.contains(*range));
            if !whole_pages || range.size == 0 || !fits || range.start < end {
                return Err(Fatal::Machine);
            }
            end = range.end();
            total = total.saturating_add(range.size);
        }
        let first = self.memory[0];
        if first.start != 0 || first.size <= KERNEL || total > config.most_memory {
            return Err(Fatal::Machine);
        }
        Ok(())
    }

    /// The memory ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.memory.iter().copied().filter(|range| range.size > 0)
    }

    /// The end of the memory that starts at 0.
    #[must_use]
    pub const fn low_memory(&self) -> u64 {
        self.memory[0].size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Flags, Platform};

    fn config() -> Config {
        Config {
            platform: Platform::Snp,
            flags: Flags::default(),
            most_memory: 8 << 30,
            most_vcpus: 4,
            kernel: [0; 32],
            initrd: [0; 32],
            command_line: [0; 32],
        }
    }

    fn header() -> Header {
        let mut memory = [Range::default(); MOST_RANGES];
        memory[0] = Range { start: 0, size: 3 << 30 };
        memory[1] = Range { start: 4 << 30, size: 1 << 30 };
        Header {
            vcpus: 2,
            memory,
            kernel: Payload { offset: 0x1000, size: 14_000_000 },
            initrd: Payload { offset: 0x100_0000, size: 5 },
            command_line: Payload { offset: 0x200_0000, size: 14 },
        }
    }

    fn read(header: &Header) -> Result<Header, Fatal> {
        Header::from_copy(&header.to_bytes(), &config(), 51)
    }

    #[test]
    fn a_header_survives_the_window() {
        assert_eq!(read(&header()), Ok(header()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |change: fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            read(&header)
        };
        let machine = Err(Fatal::Machine);
        assert_eq!(with(|h| h.vcpus = 5), machine, "more vCPUs than measured");
        assert_eq!(with(|h| h.vcpus = 0), machine);
        assert_eq!(with(|h| h.memory[1].size = 6 << 30), machine, "more memory than measured");
        assert_eq!(with(|h| h.memory[0].size += 0x1000), machine, "among the devices");
        assert_eq!(with(|h| h.memory[1].start -= 0x1000), machine, "over the image");
        assert_eq!(with(|h| h.memory[1].start += 1), machine);
        assert_eq!(with(|h| h.memory[1].start = u64::MAX - 0xfff), machine);
        assert_eq!(with(|h| h.memory[1].start = 1 << 51), machine, "the C-bit");
        assert_eq!(with(|h| h.memory.swap(0, 1)), machine, "not ascending");
        assert_eq!(with(|h| h.memory[0].start = 0x1000), machine);
        assert_eq!(with(|h| h.memory[0].size = 16 << 20), machine, "no room for a kernel");
        let window = Err(Fatal::Window);
        assert_eq!(with(|h| h.kernel.offset = 0), window, "the header itself");
        assert_eq!(with(|h| h.kernel.size = 512 << 20), window);
        assert_eq!(with(|h| h.initrd.offset = u64::MAX - 0xfff), window);
        assert_eq!(with(|h| h.command_line.size = 0), window);
        assert_eq!(with(|h| h.command_line.size = 2049), window);
        assert_eq!(Header::from_copy(&[0; HEADER_SIZE], &config(), 51), window);
    }

    #[test]
    fn bytes_without_a_meaning_are_zero() {
        let ranges = header().ranges().count();
        for at in RANGES + 16 * ranges..HEADER_SIZE {
            let mut bytes = header().to_bytes();
            bytes[at] = 1;
            assert_eq!(Header::from_copy(&bytes, &config(), 51), Err(Fatal::Window), "{at:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_ordered_and_within_limits(
            fields in prop::collection::vec((0..64_u32, any::<u64>()), 22),
            ranges in 2..=MOST_RANGES,
            aligned: bool,
        ) {
            let mut bytes = header().to_bytes();
            put(&mut bytes, 0x10, &(ranges as u64).to_le_bytes());
            for (index, (shift, value)) in fields.into_iter().enumerate().take(6 + 2 * ranges) {
                let value = if aligned { value >> shift & !0xfff } else { value >> shift };
                if shift < 52 {
                    put(&mut bytes, 0x18 + 8 * index, &value.to_le_bytes());
                }
            }
            if let Ok(header) = Header::from_copy(&bytes, &config(), 46) {
                let mut end = 0;
                for range in header.ranges() {
                    prop_assert!(range.start >= end && range.end() <= 1 << 46);
                    prop_assert!(range.end() <= LOW_MEMORY_END || range.start >= 4 << 30);
                    end = range.end();
                }
                prop_assert!(header.kernel.offset + header.kernel.size <= WINDOW_END - WINDOW);
            }
        }
    }
}
