//! The start info of the PVH boot protocol.
//!
//! Source: Xen, include/public/arch-x86/hvm/start_info.h, version 1.

use crate::{Gpa, MemoryRange};

const MAGIC: u32 = 0x336e_c578;
/// Module list and memory map follow the structure in the same page.
const MODULES: u64 = 64;
const MEMORY: u64 = 128;
/// So many entries of 24 bytes fit behind [`MEMORY`].
pub(super) const MEMORY_MAX: usize = 160;

pub(super) struct StartInfo<'a> {
    /// Address of the page.
    pub(super) page: Gpa,
    /// Address and length.
    pub(super) initrd: Option<(Gpa, u64)>,
    pub(super) cmdline: Gpa,
    pub(super) rsdp: Gpa,
    /// At most [`MEMORY_MAX`].
    pub(super) memory: &'a [MemoryRange],
}

impl StartInfo<'_> {
    pub(super) fn to_page(&self) -> Vec<u8> {
        let modules = u32::from(self.initrd.is_some());
        let entries = u32::try_from(self.memory.len()).unwrap_or(u32::MAX);
        let mut page = Page(Vec::with_capacity(4096));
        page.words(&[MAGIC, 1, 0, modules]);
        page.longs(&[self.page.0 + MODULES, self.cmdline.0, self.rsdp.0, self.page.0 + MEMORY]);
        page.words(&[entries, 0]);
        page.fill_to(MODULES);
        if let Some((start, bytes)) = self.initrd {
            page.longs(&[start.0, bytes, 0, 0]);
        }
        page.fill_to(MEMORY);
        for range in self.memory {
            page.longs(&[range.start.0, range.bytes]);
            page.words(&[range.kind as u32, 0]);
        }
        page.0
    }
}

struct Page(Vec<u8>);

impl Page {
    fn words(&mut self, words: &[u32]) {
        self.0.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    fn longs(&mut self, longs: &[u64]) {
        self.0.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
    }

    fn fill_to(&mut self, end: u64) {
        self.0.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);
    }
}
