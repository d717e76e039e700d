//! The map of guest-physical memory that a guest is told.

use crate::Gpa;

/// Kind of memory, which tells the guest how to use a range. The values are those of e820 (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables; usable once they are read. Encrypted guests map these ranges encrypted, and
    /// reserved ones not.
    Acpi = 3,
    /// Kept over sleep.
    Nvs = 4,
}

/// One entry of the map. Need not be page aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// The first address.
    pub start: Gpa,
    /// The length in bytes.
    pub bytes: u64,
    /// Kind of the memory.
    pub kind: MemoryKind,
}

impl MemoryRange {
    /// Whether the whole of `start..end` lies in this range.
    #[must_use]
    pub fn contains(&self, start: Gpa, end: Gpa) -> bool {
        self.start <= start
            && start <= end
            && self.start.checked_add(self.bytes).is_some_and(|own| end <= own)
    }
}
