//! The CPUID page of SEV-SNP (SEV-SNP firmware ABI, "CPUID Page"): vetted by the AMD firmware,
//! chosen by the host.
//!
//! A count, then from byte 16 on entries of 48 bytes: leaf, subleaf, XCR0, XSS, then EAX to EDX. All
//! other bytes are zero.

use crate::bytes::u32_at;
use crate::fatal::Fatal;

/// Entries at most.
const MOST: usize = 64;
const FIRST: usize = 16;
const ENTRY: usize = 48;

/// The leaf of what the processor can do (Intel SDM volume 2, CPUID).
const PROCESSOR: u32 = 1;

/// Of that leaf's ECX: RDRAND, the only source of randomness that is not the host's.
const RDRAND: u32 = 1 << 30;

/// The leaf of saved state: the only one whose answers depend on XCR0 and XSS.
const STATE: u32 = 0xd;

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
    let features = entries(page).find(|entry| is(entry, FEATURES) && u32_at(entry, 4) == 0);
    features.is_some_and(|entry| has_sha(u32_at(entry, 28)))
}

fn count(page: &[u8; 4096]) -> usize {
    usize::try_from(u32_at(page, 0)).unwrap_or(usize::MAX)
}

fn entries(page: &[u8; 4096]) -> impl Iterator<Item = &[u8]> + Clone {
    page[FIRST..].chunks_exact(ENTRY).take(count(page))
}

fn is(entry: &[u8], leaf: u32) -> bool {
    u32_at(entry, 0) == leaf
}

/// The entry of a leaf without subleaves: the only one of that leaf. Linux takes the first, whatever
/// its subleaf.
fn only(page: &[u8; 4096], leaf: u32) -> Option<&[u8]> {
    let mut found = entries(page).filter(|entry| is(entry, leaf));
    let entry = found.next()?;
    (found.next().is_none() && u32_at(entry, 4) == 0).then_some(entry)
}

/// Whether each byte of the page has one meaning, for the firmware and for the kernel: no entry twice,
/// no column that could choose between entries, nothing beside the entries.
fn is_plain(page: &[u8; 4096]) -> bool {
    let zero = |bytes: &[u8]| bytes.iter().fold(0, |seen, byte| seen | byte) == 0;
    let well_formed = |entry: &[u8]| {
        // XCR0 and XSS; reserved.
        zero(&entry[40..]) && (is(entry, STATE) || zero(&entry[8..24]))
    };
    let twice = |(index, entry): (usize, &[u8])| {
        entries(page).take(index).any(|other| other[..24] == entry[..24])
    };
    count(page) <= MOST
        && zero(&page[4..FIRST])
        && zero(&page[FIRST + count(page) * ENTRY..])
        && entries(page).all(well_formed)
        && !entries(page).enumerate().any(twice)
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
    /// [`Fatal::Cpuid`] if it has no fitting entry, or a C-bit where none can be; if the processor lacks
    /// RDRAND; if an entry is there twice, or a byte has no meaning.
    pub fn from_page(page: &[u8; 4096]) -> Result<Self, Fatal> {
        let entry = only(page, ENCRYPTION).ok_or(Fatal::Cpuid)?;
        let (eax, ebx) = (u32_at(entry, 24), u32_at(entry, 28));
        let c_bit = ebx & 0x3f;
        let random = only(page, PROCESSOR).is_some_and(|entry| u32_at(entry, 32) & RDRAND != 0);
        if !is_plain(page) || !random || eax & SNP == 0 || !(32..=51).contains(&c_bit) {
            return Err(Fatal::Cpuid);
        }
        Ok(Self { c_bit, touch: ebx & COHERENT == 0 })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::bytes::put;

    /// Leaf, subleaf, XCR0, XSS, EAX to EDX.
    type Entry = (u32, u32, u64, u64, [u32; 4]);

    const REST: [Entry; 3] = [
        (PROCESSOR, 0, 0, 0, [0, 0, RDRAND, 0]),
        (STATE, 0, 1, 0, [7, 0x240, 0, 0]),
        (STATE, 1, 1, 0, [1, 0x240, 0, 0]),
    ];

    fn page(entries: &[Entry]) -> [u8; 4096] {
        let mut page = [0; 4096];
        put(&mut page, 0, &u32::try_from(entries.len()).unwrap().to_le_bytes());
        for (index, (leaf, subleaf, xcr0, xss, registers)) in entries.iter().enumerate() {
            let at = FIRST + ENTRY * index;
            put(&mut page, at, &leaf.to_le_bytes());
            put(&mut page, at + 4, &subleaf.to_le_bytes());
            put(&mut page, at + 8, &xcr0.to_le_bytes());
            put(&mut page, at + 16, &xss.to_le_bytes());
            put(&mut page, at + 24, registers.map(u32::to_le_bytes).as_flattened());
        }
        page
    }

    /// The others, and these.
    fn with(more: &[Entry]) -> Result<Encryption, Fatal> {
        let entries: Vec<_> = REST.iter().chain(more).copied().collect();
        Encryption::from_page(&page(&entries))
    }

    const GOOD: Entry = (ENCRYPTION, 0, 0, 0, [SNP, 51, 0, 0]);
    const REFUSED: Result<Encryption, Fatal> = Err(Fatal::Cpuid);

    #[test]
    fn the_entry_is_found_or_missed() {
        let read = |leaf, eax, ebx| with(&[(leaf, 0, 0, 0, [eax, ebx, 0, 0])]);
        assert_eq!(read(ENCRYPTION, SNP, 51), Ok(Encryption { c_bit: 51, touch: true }));
        assert_eq!(read(ENCRYPTION, SNP, 51 | COHERENT).map(|e| e.touch), Ok(false));
        assert_eq!(with(&[]), REFUSED);
        assert_eq!(read(2, SNP, 51), REFUSED);
        assert_eq!(read(ENCRYPTION, 0, 51), REFUSED);
        assert_eq!(read(ENCRYPTION, SNP, 20), REFUSED);
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        for count in [0, 3, 65, u32::MAX] {
            let mut page = page(&[REST[0], REST[1], REST[2], GOOD]);
            put(&mut page, 0, &count.to_le_bytes());
            assert_eq!(Encryption::from_page(&page), REFUSED, "{count}");
        }
    }

    #[test]
    fn entries_that_occur_twice_are_refused() {
        assert!(with(&[GOOD, (7, 0, 0, 0, [0; 4]), (7, 1, 0, 0, [0; 4])]).is_ok());
        assert_eq!(with(&[GOOD, GOOD]), REFUSED);
        assert_eq!(with(&[GOOD, (7, 0, 0, 0, [0; 4]), (7, 0, 0, 0, [1; 4])]), REFUSED);
        assert_eq!(with(&[GOOD, REST[1]]), REFUSED);
        let (leaf, _, xcr0, xss, registers) = GOOD;
        assert_eq!(with(&[GOOD, (leaf, 1, xcr0, xss, registers)]), REFUSED);
        assert_eq!(with(&[(leaf, 1, xcr0, xss, registers)]), REFUSED);
        assert_eq!(with(&[GOOD, (PROCESSOR, 1, 0, 0, [0, 0, RDRAND, 0])]), REFUSED);
    }

    #[test]
    fn columns_of_xcr0_and_xss_are_of_the_leaf_of_state_alone() {
        assert!(with(&[GOOD, (STATE, 0, 3, 0, [7, 0x340, 0, 0])]).is_ok());
        for (xcr0, xss) in [(1, 0), (0, 1), (0, 1 << 63)] {
            assert_eq!(with(&[(ENCRYPTION, 0, xcr0, xss, GOOD.4)]), REFUSED);
            assert_eq!(with(&[GOOD, (7, 0, xcr0, xss, [0; 4])]), REFUSED);
        }
    }

    #[test]
    fn a_processor_without_rdrand_is_refused() {
        assert_eq!(Encryption::from_page(&page(&[GOOD])), REFUSED);
        assert_eq!(
            Encryption::from_page(&page(&[GOOD, (PROCESSOR, 0, 0, 0, [!0, !0, !RDRAND, !0])])),
            REFUSED
        );
    }

    #[test]
    fn bytes_without_a_meaning_are_zero() {
        let good = page(&[REST[0], REST[1], REST[2], GOOD]);
        assert!(Encryption::from_page(&good).is_ok());
        let reserved = (0..4).flat_map(|index| (40..48).map(move |at| FIRST + ENTRY * index + at));
        for at in (4..FIRST).chain(reserved).chain(FIRST + 4 * ENTRY..4096) {
            let mut page = good;
            page[at] = 0x80;
            assert_eq!(Encryption::from_page(&page), REFUSED, "{at:#x}");
        }
    }
}
