//! The ELF file of the image (ELF-64 object file format).

#![allow(dead_code, reason = "each test and benchmark uses a part")]

use std::ops::Range;

pub(crate) struct Elf(pub(crate) &'static [u8]);

/// A section. Without bytes where the linker only reserves memory.
pub(crate) struct Section {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) bytes: &'static [u8],
}

impl Elf {
    /// The section of this name.
    pub(crate) fn section(&self, name: &str) -> Option<Section> {
        let file = self.0;
        let (table, size, names) = (field(file, 40, 8), field(file, 58, 2), field(file, 62, 2));
        let names = field(file, table + names * size + 24, 8);
        (0..field(file, 60, 2)).map(|index| table + index * size).find_map(|header| {
            let found = text_at(file, names + field(file, header, 4)) == name.as_bytes();
            let [offset, size] =
                [24, 32].map(|at| usize::try_from(field(file, header + at, 8)).unwrap());
            const NOBITS: u64 = 8;
            let nobits = field(file, header + 4, 4) == NOBITS;
            let bytes = if nobits { &[] } else { &file[offset..][..size] };
            let address = field(file, header + 16, 8);
            found.then_some(Section { address, size: size as u64, bytes })
        })
    }

    /// Where the only function is whose path, mangled, has this name.
    pub(crate) fn function(&self, name: &str) -> Range<u64> {
        let [symbols, names] = [".symtab", ".strtab"].map(|name| self.section(name).unwrap().bytes);
        let mut found = symbols.chunks_exact(24).filter_map(|symbol| {
            let path = String::from_utf8_lossy(text_at(names, field(symbol, 0, 4)));
            let (start, size) = (field(symbol, 8, 8), field(symbol, 16, 8));
            path.contains(name).then_some(start..start + size)
        });
        let function = found.next().unwrap();
        assert_eq!(found.next(), None, "another {name}");
        function
    }
}

/// A little-endian number.
fn field(bytes: &[u8], at: u64, size: usize) -> u64 {
    let bytes = &bytes[usize::try_from(at).unwrap()..][..size];
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Up to a NUL.
fn text_at(bytes: &[u8], at: u64) -> &[u8] {
    let rest = &bytes[usize::try_from(at).unwrap()..];
    rest.split(|byte| *byte == 0).next().unwrap_or_default()
}
