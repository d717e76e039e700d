//! What the kernel is told of memory.

use crate::layout::{ECAM, ECAM_SIZE, HANDOFF, HANDOFF_SIZE, KEPT_SIZE, SECRETS, WORK};
use crate::window::{Header, MOST_RANGES, Range};

/// Entries at most: what low memory is cut into, ECAM, and the other ranges.
pub const MOST: usize = 7 + MOST_RANGES;

/// What a range is, with its number in an e820 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Usable.
    #[default]
    Ram = 1,
    /// Not usable. Linux maps it shared in an encrypted guest: nothing that is private may be here.
    Reserved = 2,
    /// ACPI tables and their like, which stay where they are. Linux maps these encrypted.
    Acpi = 3,
}

/// A part of the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub range: Range,
    /// What.
    pub kind: Kind,
}

/// The map, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    entries: [Entry; MOST],
    count: usize,
}

impl MemoryMap {
    /// The map of a guest with the memory of `header`.
    #[must_use]
    pub fn new(header: &Header) -> Self {
        let mut map = Self::default();
        let mut start = 0;
        let handoff_end = HANDOFF + HANDOFF_SIZE;
        for (end, kind) in [
            (0xa_0000, Kind::Ram),
            (0x10_0000, Kind::Reserved),
            (SECRETS, Kind::Ram),
            (WORK + KEPT_SIZE, Kind::Acpi),
            (HANDOFF, Kind::Ram),
            (handoff_end, Kind::Acpi),
            (header.low_memory(), Kind::Ram),
        ] {
            map.add(Range::between(start, end), kind);
            start = end;
        }
        map.add(Range { start: ECAM, size: ECAM_SIZE }, Kind::Reserved);
        for range in header.ranges().skip(1) {
            map.add(range, Kind::Ram);
        }
        map
    }

    /// The entries.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().copied().take(self.count)
    }

    /// Where RAM ends.
    #[must_use]
    pub fn end_of_ram(&self) -> u64 {
        let ram = self.entries().filter(|entry| entry.kind == Kind::Ram);
        ram.map(|entry| entry.range.end()).max().unwrap_or_default()
    }

    fn add(&mut self, range: Range, kind: Kind) {
        // There is room for all that `new` can add.
        if let Some(entry) = self.entries.get_mut(self.count) {
            *entry = Entry { range, kind };
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ascending_without_gaps_below_and_has_all_memory() {
        let mut header = Header { vcpus: 1, ..Header::default() };
        header.memory[0].size = 1 << 30;
        for index in 1..MOST_RANGES {
            header.memory[index] = Range { start: (4 + index as u64) << 30, size: 1 << 30 };
        }
        let map = MemoryMap::new(&header);
        let mut end = 0;
        for entry in map.entries() {
            assert!(entry.range.start >= end && entry.range.size > 0);
            assert!(entry.range.start == end || end >= 1 << 30);
            end = entry.range.end();
        }
        assert_eq!(end, 12 << 30);
        assert_eq!(map.end_of_ram(), 12 << 30);
    }
}
