//! The zero page (struct boot_params) of the Linux boot protocol.
//!
//! Source: Documentation/arch/x86/zero-page.rst and boot.rst; offsets count from its start.

use super::bzimage::HEADER;
use crate::{Gpa, MemoryRange};

/// The e820 table in the zero page has this many entries (E820_MAX_ENTRIES_ZEROPAGE).
pub(super) const E820_MAX: usize = 128;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;

/// Contents of the zero page.
pub(super) struct BootParams<'a> {
    /// 0x1f1 up to its end; none for a kernel that has none.
    pub(super) setup_header: &'a [u8],
    pub(super) kernel: Gpa,
    /// Address and length.
    pub(super) initrd: Option<(Gpa, u64)>,
    pub(super) cmdline: Gpa,
    pub(super) rsdp: Gpa,
    /// At most [`E820_MAX`].
    pub(super) memory: &'a [MemoryRange],
}

impl BootParams<'_> {
    pub(super) fn to_page(&self) -> Vec<u8> {
        let mut page = vec![0; 4096];
        put(&mut page, HEADER, self.setup_header);
        if self.setup_header.is_empty() {
            // Kernels without a header still read this.
            put(&mut page, 0x1fe, &0xaa55_u16.to_le_bytes());
            put(&mut page, 0x202, b"HdrS");
            put(&mut page, 0x206, &0x020c_u16.to_le_bytes());
        }
        // type_of_loader: "undefined"; loadflags: LOADED_HIGH.
        page[0x210] = 0xff;
        page[0x211] |= 1;
        put(&mut page, 0x214, &low(self.kernel.0));
        if let Some((start, bytes)) = self.initrd {
            put(&mut page, 0x218, &low(start.0));
            put(&mut page, 0x21c, &low(bytes));
            // ext_ramdisk_image, ext_ramdisk_size.
            put(&mut page, 0xc0, &low(start.0 >> 32));
            put(&mut page, 0xc4, &low(bytes >> 32));
        }
        put(&mut page, 0x228, &low(self.cmdline.0));
        put(&mut page, 0x70, &self.rsdp.0.to_le_bytes());
        let entries = self.memory.iter().take(E820_MAX);
        put(&mut page, 0x1e8, &[u8::try_from(entries.len()).unwrap_or(u8::MAX)]);
        for (index, range) in entries.enumerate() {
            let at = E820_TABLE + index * E820_ENTRY;
            put(&mut page, at, &range.start.0.to_le_bytes());
            put(&mut page, at + 8, &range.bytes.to_le_bytes());
            put(&mut page, at + 16, &(range.kind as u32).to_le_bytes());
        }
        page
    }
}

/// The low half, in the byte order of the page.
fn low(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

/// Offsets are constants and lengths are bounded: everything stays in the page.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}
