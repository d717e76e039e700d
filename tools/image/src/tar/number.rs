//! Numbers of headers.

/// Parses octal digits between spaces, which a null byte ends, or a base-256 number, whose first bit is set.
/// An empty field is 0. Negative numbers are refused.
pub(super) fn parse(field: &[u8]) -> Option<u64> {
    if let [0x80, digits @ ..] = field {
        let mut value = 0_u64;
        for &digit in digits {
            value = value.checked_mul(256)?.checked_add(digit.into())?;
        }
        return Some(value);
    }
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii();
    let mut value = 0_u64;
    for &digit in text {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 8)?;
        value = value.checked_mul(8)?.checked_add(digit.into())?;
    }
    Some(value)
}
