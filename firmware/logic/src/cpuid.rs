//! The CPUID page of SEV-SNP (SEV-SNP firmware ABI, "CPUID Page"): vetted by the AMD firmware,
//! chosen by the host.
//!
//! A count, then from byte 16 on entries of 48 bytes: leaf, subleaf, XCR0, XSS, then EAX to EDX.

use crate::bytes::u32_at;
use crate::fatal::Fatal;

/// Entries at most.
const MOST: u32 = 64;

/// The leaf that describes memory encryption (AMD64 APM volume 3, E.4.17).
const ENCRYPTION: u32 = 0x8000_001f;

/// Of that leaf's EAX: SEV-SNP.
const SNP: u32 = 1 << 4;

/// Of that leaf's EBX: caches keep up with changes of a page's encryption, so that the firmware
/// need not touch what it accepts.
const COHERENT: u32 = 1 << 31;

/// The leaf of features that came later (Intel SDM volume 2, CPUID).
pub const FEATURES: u32 = 7;

/// Whether EBX of [`FEATURES`] says that the processor has instructions for SHA-256.
#[must_use]
pub const fn has_sha(ebx: u32) -> bool {
    ebx & 1 << 29 != 0
}

/// Whether an SEV-SNP guest's processor has them.
#[must_use]
pub fn page_has_sha(page: &[u8; 4096]) -> bool {
    entry(page, FEATURES).is_some_and(|entry| has_sha(u32_at(entry, 28)))
}

/// The entry of a leaf, subleaf 0.
fn entry(page: &[u8; 4096], leaf: u32) -> Option<&[u8]> {
    let count = usize::try_from(u32_at(page, 0)).unwrap_or(usize::MAX);
    let mut entries = page[16..].chunks_exact(48).take(count);
    entries.find(|entry| u32_at(entry, 0) == leaf && u32_at(entry, 4) == 0)
}

/// What the firmware takes from the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// Position of the C-bit in page table entries.
    pub c_bit: u32,
    /// Whether accepted pages must be touched.
    pub touch: bool,
}

impl Encryption {
    /// Reads the page.
    ///
    /// # Errors
    /// [`Fatal::Cpuid`] if it has no fitting entry, or a C-bit where none can be.
    pub fn from_page(page: &[u8; 4096]) -> Result<Self, Fatal> {
        let entry = entry(page, ENCRYPTION).ok_or(Fatal::Cpuid)?;
        let (eax, ebx) = (u32_at(entry, 24), u32_at(entry, 28));
        let c_bit = ebx & 0x3f;
        if u32_at(page, 0) > MOST || eax & SNP == 0 || !(32..=51).contains(&c_bit) {
            return Err(Fatal::Cpuid);
        }
        Ok(Self { c_bit, touch: ebx & COHERENT == 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::put;

    fn page(count: u32, leaf: u32, eax: u32, ebx: u32) -> [u8; 4096] {
        let mut page = [0; 4096];
        put(&mut page, 0, &count.to_le_bytes());
        put(&mut page, 64, &leaf.to_le_bytes());
        put(&mut page, 88, &eax.to_le_bytes());
        put(&mut page, 92, &ebx.to_le_bytes());
        page
    }

    #[test]
    fn the_entry_is_found_or_missed() {
        let read = |count, leaf, eax, ebx| Encryption::from_page(&page(count, leaf, eax, ebx));
        let found = Encryption { c_bit: 51, touch: true };
        assert_eq!(read(2, ENCRYPTION, SNP, 51), Ok(found));
        assert_eq!(read(2, ENCRYPTION, SNP, 51 | COHERENT).map(|e| e.touch), Ok(false));
        let refused = Err(Fatal::Cpuid);
        assert_eq!(read(1, ENCRYPTION, SNP, 51), refused, "behind the last entry");
        assert_eq!(read(2, 1, SNP, 51), refused);
        assert_eq!(read(2, ENCRYPTION, 0, 51), refused);
        assert_eq!(read(2, ENCRYPTION, SNP, 20), refused);
        assert_eq!(read(65, ENCRYPTION, SNP, 51), refused);
    }
}
