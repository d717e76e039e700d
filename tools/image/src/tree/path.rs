//! Paths of archive members.

use super::TreeError;

/// Longest name in bytes (Linux `NAME_MAX`, `EROFS_NAME_LEN`).
const MAX_NAME: usize = 255;
/// Longest path in bytes (Linux `PATH_MAX` without the null byte).
pub(super) const MAX_PATH: usize = 4095;

/// Splits a relative path into its names. The result is empty for the root itself.
pub(super) fn split(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if path.starts_with(b"/") {
        return Err(TreeError::Absolute);
    }
    if path.len() > MAX_PATH {
        return Err(TreeError::PathTooLong);
    }
    if path.contains(&0) {
        return Err(TreeError::NullByte);
    }
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(TreeError::ParentComponent),
            _ if name.len() > MAX_NAME => return Err(TreeError::NameTooLong),
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// A path for messages: printable, and not longer than a line.
pub(crate) fn show(path: &[u8]) -> String {
    const SHOWN: usize = 120;
    let text = path.get(..SHOWN).unwrap_or(path).escape_ascii().to_string();
    if path.len() > SHOWN { format!("{text}...") } else { text }
}
