//! What the kernel finds when it starts: boot parameters (Linux, Documentation/arch/x86/zero-page.rst
//! and boot.rst), command line, and in an SEV-SNP guest the tables that tell it so.
//!
//! All of it lies in [`HANDOFF`]:
//!
//! | offset | what |
//! |---|---|
//! | 0 | boot parameters |
//! | 0x1000 | command line |
//! | 0x2000 | ACPI tables |
//! | 0x8000 | setup data, confidential-computing blob, EFI system table and its tables |
//! | 0x20000 | bitmap of memory that is not accepted |
//!
//! Linux reads of unaccepted memory in EFI tables only, and it reads these from memory: no EFI is
//! needed to hand them over. The rest of what EFI would offer is left out.

use crate::accept::Accepted;
use crate::bytes::put;
use crate::fatal::Fatal;
use crate::kernel::{HEADER, Kernel};
use crate::layout::{CPUID, GRANULE, HANDOFF, HANDOFF_SIZE, KERNEL, SECRETS};
use crate::memory_map::{Kind, MemoryMap};
use crate::window::Range;

const COMMAND_LINE: usize = 0x1000;
/// Where ACPI tables go.
pub const ACPI: usize = 0x2000;
/// Bytes for ACPI tables.
pub const ACPI_SIZE: usize = 0x6000;
const SETUP_DATA: usize = 0x8000;
const BLOB: usize = 0x8020;
const SYSTEM_TABLE: usize = 0x8100;
const CONFIGURATION: usize = 0x8200;
const VENDOR: usize = 0x8300;
const EFI_MAP: usize = 0x8400;
/// Header of the table of unaccepted memory; its bitmap follows.
const UNACCEPTED: usize = 0x2_0000 - 24;
const BITMAP: usize = 0x2_0000;

/// Bytes of an entry of the EFI memory map (UEFI 2.10, section 7.2.3).
const DESCRIPTOR: usize = 40;

/// `LINUX_EFI_UNACCEPTED_MEM_TABLE_GUID`, d5d1de3c-105c-44f9-9ea9-bcef98120031.
const UNACCEPTED_GUID: [u64; 2] = [0x44f9_105c_d5d1_de3c, 0x3100_1298_efbc_a99e];

/// The hand-off area while it is filled.
pub struct Handoff<'a> {
    area: &'a mut [u8],
}

impl<'a> Handoff<'a> {
    /// Fills `area`, which is at [`HANDOFF`] and has [`HANDOFF_SIZE`] bytes: with zeroes at first,
    /// whatever was there.
    #[must_use]
    pub fn new(area: &'a mut [u8]) -> Self {
        area.fill(0);
        Self { area }
    }

    /// Boot parameters for the kernel whose `file` has been checked.
    pub fn boot_parameters(&mut self, file: &[u8], kernel: &Kernel, map: &MemoryMap) {
        if let Some(header) = file.get(HEADER..kernel.header_end) {
            put(self.area, HEADER, header);
        }
        // Type of loader: none that has a number. Loaded high.
        put(self.area, 0x210, &[0xff]);
        let flags = file.get(0x211).copied().unwrap_or_default();
        put(self.area, 0x211, &[flags | 1]);
        self.put_u32(0x214, low(KERNEL));
        let mut count = 0;
        for (index, entry) in map.entries().enumerate() {
            self.put_u64(0x2d0 + 20 * index, entry.range.start);
            self.put_u64(0x2d8 + 20 * index, entry.range.size);
            self.put_u32(0x2e0 + 20 * index, entry.kind as u32);
            count += 1;
        }
        put(self.area, 0x1e8, &[count]);
        self.put_u64(0x70, HANDOFF + ACPI as u64);
    }

    /// The command line, with its NUL.
    pub fn command_line(&mut self, line: &[u8]) {
        put(self.area, COMMAND_LINE, line);
        self.put_u32(0x228, low(HANDOFF) + low(COMMAND_LINE as u64));
    }

    /// The initrd, below 4 GiB.
    pub fn initrd(&mut self, range: Range) {
        self.put_u32(0x218, low(range.start));
        self.put_u32(0x21c, low(range.size));
    }

    /// The place for ACPI tables; they begin with the RSDP.
    pub fn acpi(&mut self) -> &mut [u8] {
        &mut self.area[ACPI..ACPI + ACPI_SIZE]
    }

    /// Where secrets page and CPUID page are: a `setup_data` of type `SETUP_CC_BLOB` that points to
    /// a `cc_blob_sev_info` (Linux, arch/x86/include/asm/sev.h).
    pub fn snp_pages(&mut self) {
        const SETUP_CC_BLOB: u32 = 7;
        self.put_u32(SETUP_DATA + 8, SETUP_CC_BLOB);
        self.put_u32(SETUP_DATA + 12, 4);
        self.put_u32(SETUP_DATA + 16, low(HANDOFF) + low(BLOB as u64));
        put(self.area, BLOB, b"AMDE");
        self.put_u64(BLOB + 8, SECRETS);
        self.put_u32(BLOB + 16, 0x1000);
        self.put_u64(BLOB + 24, CPUID);
        self.put_u32(BLOB + 32, 0x1000);
        self.put_u64(0x250, HANDOFF + SETUP_DATA as u64);
    }

    /// Which memory is not accepted: with a bit for each granule, a byte for eight, so that a guest with
    /// much memory has little more to do than one with little.
    ///
    /// # Errors
    /// [`Fatal::Machine`] if there is more memory than the bitmap has bits for, 2 TiB.
    pub fn unaccepted(&mut self, map: &MemoryMap, accepted: &Accepted) -> Result<(), Fatal> {
        let granules = map.end_of_ram().div_ceil(GRANULE);
        let bytes = granules.div_ceil(8);
        if bytes > HANDOFF_SIZE - BITMAP as u64 {
            return Err(Fatal::Machine);
        }
        for entry in map.entries().filter(|entry| entry.kind == Kind::Ram) {
            self.mark(entry.range, true);
        }
        for range in accepted.ranges() {
            self.mark(range, false);
        }
        // Version and unit size, first address, size of the bitmap.
        self.put_u32(UNACCEPTED, 1);
        self.put_u32(UNACCEPTED + 4, low(GRANULE));
        self.put_u64(UNACCEPTED + 16, bytes);
        self.efi_tables(map);
        Ok(())
    }

    /// Makes the bits of all granules that `range` touches say so.
    fn mark(&mut self, range: Range, unaccepted: bool) {
        let index = |address: u64| usize::try_from(address / GRANULE).unwrap_or(usize::MAX);
        let (first, end) = (index(range.granules().start), index(range.granules().end()));
        for byte in first / 8..end.div_ceil(8) {
            // Of its eight bits, those from `first` on and below `end`.
            let bits = 0xff_u8 << first.saturating_sub(8 * byte);
            let bits = bits & 0xff >> (8 * byte + 8).saturating_sub(end);
            if let Some(byte) = self.area.get_mut(BITMAP + byte) {
                *byte = if unaccepted { *byte | bits } else { *byte & !bits };
            }
        }
    }

    /// A system table (UEFI 2.10, section 4.3) with one configuration table, and a memory map.
    fn efi_tables(&mut self, map: &MemoryMap) {
        put(self.area, SYSTEM_TABLE, b"IBI SYST");
        self.put_u32(SYSTEM_TABLE + 8, 2 << 16 | 100);
        self.put_u32(SYSTEM_TABLE + 12, 120);
        self.put_u64(SYSTEM_TABLE + 24, HANDOFF + VENDOR as u64);
        self.put_u64(SYSTEM_TABLE + 104, 1);
        self.put_u64(SYSTEM_TABLE + 112, HANDOFF + CONFIGURATION as u64);
        for (index, letter) in b"Casemate".iter().enumerate() {
            put(self.area, VENDOR + 2 * index, &[*letter]);
        }
        self.put_u64(CONFIGURATION, UNACCEPTED_GUID[0]);
        self.put_u64(CONFIGURATION + 8, UNACCEPTED_GUID[1]);
        self.put_u64(CONFIGURATION + 16, HANDOFF + UNACCEPTED as u64);
        let mut size = 0;
        for entry in map.entries() {
            let at = EFI_MAP + size;
            // EfiLoaderData, EfiReservedMemoryType, EfiACPIReclaimMemory. Linux takes the e820 table for
            // what is free, but where to unpack itself from here: nowhere else than where it is, which
            // has been accepted. Elsewhere it would ask the host for each page of itself.
            let (kind, attributes) = match entry.kind {
                Kind::Ram => (2, 8),
                Kind::Reserved => (0, 0),
                Kind::Acpi => (9, 8),
            };
            self.put_u32(at, kind);
            self.put_u64(at + 8, entry.range.start);
            self.put_u64(at + 24, entry.range.size / 4096);
            self.put_u64(at + 32, attributes);
            size += DESCRIPTOR;
        }
        put(self.area, 0x1c0, b"EL64");
        self.put_u32(0x1c4, low(HANDOFF) + low(SYSTEM_TABLE as u64));
        self.put_u32(0x1c8, low(DESCRIPTOR as u64));
        self.put_u32(0x1cc, 1);
        self.put_u32(0x1d0, low(HANDOFF) + low(EFI_MAP as u64));
        self.put_u32(0x1d4, low(size as u64));
    }

    fn put_u32(&mut self, offset: usize, value: u32) {
        put(self.area, offset, &value.to_le_bytes());
    }

    fn put_u64(&mut self, offset: usize, value: u64) {
        put(self.area, offset, &value.to_le_bytes());
    }
}

/// The low half of an address or size below 4 GiB.
#[expect(clippy::cast_possible_truncation, reason = "everything here is below 4 GiB")]
const fn low(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::accept::first;
    use crate::bytes::{u32_at, u64_at};
    use crate::config::Platform;
    use crate::window::Header;

    fn filled() -> Vec<u8> {
        let mut area = vec![0xa5; usize::try_from(HANDOFF_SIZE).unwrap()];
        let mut header = Header { vcpus: 1, ..Header::default() };
        header.memory[0].size = 256 << 20;
        header.memory[1] = Range { start: 4 << 30, size: 1 << 30 };
        let map = MemoryMap::new(&header);
        let mut accepted = Accepted::at_start(Platform::Snp);
        for range in first(Platform::Snp) {
            accepted.claim(range).unwrap();
        }
        accepted.claim(Range { start: KERNEL, size: GRANULE }).unwrap();
        let mut file = vec![0; 0x2000];
        put(&mut file, 0x201, &[0x6c]);
        put(&mut file, 0x202, b"HdrS");
        let kernel = Kernel { header_end: 0x26e, memory: 0, initrd_limit: 0 };
        let mut handoff = Handoff::new(&mut area);
        handoff.boot_parameters(&file, &kernel, &map);
        handoff.command_line(b"console=ttyS0\0");
        handoff.snp_pages();
        handoff.unaccepted(&map, &accepted).unwrap();
        area
    }

    #[test]
    fn accepted_granules_and_holes_have_no_bit() {
        let area = filled();
        let bit = |address: u64| {
            let index = usize::try_from(address / GRANULE).unwrap();
            area[BITMAP + index / 8] >> (index % 8) & 1
        };
        assert_eq!([0, SECRETS, KERNEL, 1 << 30, 0xe000_0000].map(bit), [0; 5]);
        assert_eq!(
            [GRANULE, KERNEL + GRANULE, 255 << 20, 4 << 30, 5 << 30].map(bit),
            [1, 1, 1, 1, 0]
        );
        assert_eq!(u64_at(&area, UNACCEPTED + 16), (5 << 30) / GRANULE / 8);
    }

    proptest! {
        #[test]
        fn marks_are_those_of_the_granules(ranges in prop::collection::vec((0..40_u64, 0..40_u64, any::<bool>()), 9)) {
            let mut area = vec![0; usize::try_from(HANDOFF_SIZE).unwrap()];
            let mut handoff = Handoff::new(&mut area);
            let mut expected = [false; 80];
            for (start, count, unaccepted) in ranges {
                let range = Range { start: start * GRANULE, size: count * GRANULE };
                handoff.mark(range, unaccepted);
                let granules = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
                expected[granules].fill(unaccepted);
            }
            for (index, expected) in expected.into_iter().enumerate() {
                prop_assert_eq!(area[BITMAP + index / 8] >> (index % 8) & 1 == 1, expected);
            }
        }
    }

    #[test]
    fn memory_that_the_bitmap_has_no_bits_for_is_refused() {
        const MOST: u64 = (HANDOFF_SIZE - BITMAP as u64) * 8 * GRANULE;
        for (end, refused) in [(MOST, false), (MOST + GRANULE, true)] {
            let mut header = Header { vcpus: 1, ..Header::default() };
            header.memory[0].size = 1 << 30;
            header.memory[1] = Range::between(4 << 30, end);
            let mut area = vec![0; usize::try_from(HANDOFF_SIZE).unwrap()];
            let accepted = Accepted::at_start(Platform::Snp);
            let done = Handoff::new(&mut area).unaccepted(&MemoryMap::new(&header), &accepted);
            assert_eq!(done.is_err(), refused, "{end:#x}");
        }
    }

    #[test]
    fn pointers_lead_where_they_should() {
        let area = filled();
        let follow = |address: u64| usize::try_from(address - HANDOFF).unwrap();
        let line = follow(u32_at(&area, 0x228).into());
        assert!(area[line..].starts_with(b"console=ttyS0\0"));
        let setup = follow(u64_at(&area, 0x250));
        let blob = follow(u32_at(&area, setup + 16).into());
        assert!(area[blob..].starts_with(b"AMDE"));
        assert_eq!((u64_at(&area, blob + 8), u64_at(&area, blob + 24)), (SECRETS, CPUID));
        let system = follow(u32_at(&area, 0x1c4).into());
        let configuration = follow(u64_at(&area, system + 112));
        let table = follow(u64_at(&area, configuration + 16));
        assert_eq!(u32_at(&area, table + 4), 2 << 20);
        let count = u32_at(&area, 0x1d4) / u32_at(&area, 0x1c8);
        assert_eq!(count, area[0x1e8].into(), "as many entries as the e820 table has");
        let map = follow(u32_at(&area, 0x1d0).into());
        let kinds = area[map..].chunks_exact(DESCRIPTOR).take(count as usize);
        assert!(kinds.map(|entry| u32_at(entry, 0)).all(|kind| ![7, 15].contains(&kind)));
    }
}
