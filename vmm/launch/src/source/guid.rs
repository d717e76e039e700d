//! GUIDs as firmware images store them.

use std::fmt;

/// A GUID in the byte order of firmware images: the first three groups of its text little endian,
/// the rest as written (UEFI specification, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// The GUID whose text has these digits: `Guid::new(0x96b582de_1fb2_45f7_baea_a366c55a082d)`.
    #[must_use]
    pub const fn new(digits: u128) -> Self {
        let d = digits.to_be_bytes();
        Self([
            d[3], d[2], d[1], d[0], d[5], d[4], d[7], d[6], d[8], d[9], d[10], d[11], d[12], d[13],
            d[14], d[15],
        ])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Storing and reading swap the same bytes.
        let text = u128::from_be_bytes(Self::new(u128::from_be_bytes(self.0)).0);
        let group = |shift: u32, digits: u32| (text >> shift) & ((1 << (digits * 4)) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            group(96, 8),
            group(80, 4),
            group(64, 4),
            group(48, 4),
            group(0, 12)
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_groups_are_little_endian() {
        let guid = Guid::new(0x96b582de_1fb2_45f7_baea_a366c55a082d);
        assert_eq!(guid.0[..8], [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45]);
        assert_eq!(guid.0[8..], [0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d]);
        assert_eq!(guid.to_string(), "96b582de-1fb2-45f7-baea-a366c55a082d");
    }
}
