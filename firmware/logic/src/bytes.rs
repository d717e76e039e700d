//! Little-endian fields at byte offsets.

/// The bytes at `offset`, or zeroes past the end: layouts have room for every field that is read.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(found) = bytes.get(offset..).and_then(|rest| rest.get(..N)) {
        field.copy_from_slice(found);
    }
    field
}

/// The `u16` at `offset`.
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(bytes, offset))
}

/// The `u32` at `offset`.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(bytes, offset))
}

/// The `u64` at `offset`.
#[must_use]
pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}

/// The SHA-256 digest at `offset`.
#[must_use]
pub fn digest_at(bytes: &[u8], offset: usize) -> [u8; 32] {
    array(bytes, offset)
}

/// Puts `field` at `offset`; the part past the end of `bytes` is dropped.
pub fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(offset).zip(field) {
        *place = *byte;
    }
}
