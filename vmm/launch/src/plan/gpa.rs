//! Guest-physical addresses and ranges of whole pages, with checked arithmetic.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The size of a page, in bytes. Launch commands of both platforms work in these.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-physical address, in bytes, without C-bit or shared bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A number of 4 KiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(pub u64);

/// Why an address or a range is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpaError {
    /// {0} does not start at a multiple of 4096
    #[error("{0} does not start at a multiple of 4096")]
    Unaligned(Gpa),
    /// a length that is not a multiple of 4096
    #[error("{1:#x} bytes at {0} are not a whole number of 4 KiB pages")]
    UnalignedLength(Gpa, u64),
    /// a range that wraps around
    #[error("{1} pages at {0} reach past the end of the 64-bit address space")]
    Overflow(Gpa, PageCount),
}

impl Gpa {
    /// The address `offset` bytes further up, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, offset: u64) -> Option<Self> {
        match self.0.checked_add(offset) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether the address is a multiple of 4096.
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// As text, in hexadecimal: JSON readers lose digits of large numbers.
impl Serialize for Gpa {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Gpa {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Self).ok_or_else(|| {
            de::Error::custom(format!("expected an address such as \"0x800000\", found {text:?}"))
        })
    }
}

impl PageCount {
    /// The pages that hold `bytes` bytes, the last one perhaps not full.
    #[must_use]
    pub const fn covering(bytes: u64) -> Self {
        Self(bytes.div_ceil(PAGE_SIZE))
    }

    /// The size in bytes, or `None` if it does not fit 64 bits.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(PAGE_SIZE)
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Whole pages of guest-physical memory: aligned, and never past the end of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpaRange {
    start: Gpa,
    pages: PageCount,
}

impl GpaRange {
    /// `pages` pages from `start`.
    ///
    /// # Errors
    /// If `start` is not page aligned or the range reaches past the end of the address space.
    pub fn new(start: Gpa, pages: PageCount) -> Result<Self, GpaError> {
        if !start.is_page_aligned() {
            return Err(GpaError::Unaligned(start));
        }
        pages
            .bytes()
            .and_then(|bytes| start.checked_add(bytes))
            .ok_or(GpaError::Overflow(start, pages))?;
        Ok(Self { start, pages })
    }

    /// `bytes` bytes from `start`; both must be multiples of 4096.
    ///
    /// # Errors
    /// If one of them is not, or the range reaches past the end of the address space.
    pub fn from_bytes(start: Gpa, bytes: u64) -> Result<Self, GpaError> {
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(GpaError::UnalignedLength(start, bytes));
        }
        Self::new(start, PageCount(bytes / PAGE_SIZE))
    }

    /// The first address.
    #[must_use]
    pub const fn start(self) -> Gpa {
        self.start
    }

    /// The first address behind the range.
    #[must_use]
    pub const fn end(self) -> Gpa {
        Gpa(self.start.0 + self.len())
    }

    /// The number of pages.
    #[must_use]
    pub const fn pages(self) -> PageCount {
        self.pages
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.pages.0 * PAGE_SIZE
    }

    /// Whether the range has no page.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.pages.0 == 0
    }

    /// Whether the two ranges share a page.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether every page of `other` lies in this range.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The address of each page, ascending.
    pub fn page_addresses(self) -> impl ExactSizeIterator<Item = Gpa> + Clone {
        let count = usize::try_from(self.pages.0).unwrap_or(usize::MAX);
        (0..count).map(move |index| Gpa(self.start.0 + index as u64 * PAGE_SIZE))
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_aligned_and_does_not_wrap() {
        assert_eq!(GpaRange::new(Gpa(12), PageCount(1)), Err(GpaError::Unaligned(Gpa(12))));
        assert_eq!(GpaRange::from_bytes(Gpa(0), 100), Err(GpaError::UnalignedLength(Gpa(0), 100)));
        let top = Gpa(u64::MAX - PAGE_SIZE + 1);
        assert_eq!(GpaRange::new(top, PageCount(1)), Err(GpaError::Overflow(top, PageCount(1))));
        assert_eq!(
            GpaRange::new(Gpa(0), PageCount(u64::MAX)),
            Err(GpaError::Overflow(Gpa(0), PageCount(u64::MAX)))
        );
    }

    #[test]
    fn pages_are_listed_ascending() {
        let range = GpaRange::from_bytes(Gpa(0x3000), 0x2000).unwrap();
        let pages: Vec<_> = range.page_addresses().collect();
        assert_eq!(pages, [Gpa(0x3000), Gpa(0x4000)]);
        assert_eq!(range.to_string(), "0x3000..0x5000");
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let low = GpaRange::new(Gpa(0), PageCount(2)).unwrap();
        let high = GpaRange::new(Gpa(0x2000), PageCount(2)).unwrap();
        assert!(!low.overlaps(high));
        assert!(low.overlaps(GpaRange::new(Gpa(0x1000), PageCount(2)).unwrap()));
        assert!(low.contains(low) && !low.contains(high));
    }
}
