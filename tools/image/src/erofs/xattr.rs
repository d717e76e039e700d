//! Extended attributes beside their inode: a header of 12 bytes, then entries of a multiple of 4 bytes.

use crate::tree::Xattr;

const HEADER: usize = 12;
const ENTRY: usize = 4;

/// Indices of name prefixes (`EROFS_XATTR_INDEX_*`). ACLs have no name beside the prefix.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Index of a name's prefix, and the rest of the name. `None` if erofs cannot store it.
pub(crate) fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let (index, rest) =
        PREFIXES.iter().find_map(|&(prefix, index)| Some((index, name.strip_prefix(prefix)?)))?;
    let acl = matches!(index, 2 | 3);
    let fits = rest.len() <= 255 && !rest.contains(&0);
    (fits && rest.is_empty() == acl).then_some((index, rest))
}

/// Encodes the attributes of an inode. Empty if there are none.
pub(super) fn encode(xattrs: &[Xattr]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![0; HEADER];
    for xattr in xattrs {
        // The tree refuses names and values that do not fit.
        let Some((index, rest)) = split(&xattr.name) else { continue };
        let name_len = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let value_len = u16::try_from(xattr.value.len()).unwrap_or(u16::MAX);
        bytes.extend([name_len, index]);
        bytes.extend(value_len.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(&xattr.value);
        bytes.resize(bytes.len().next_multiple_of(ENTRY), 0);
    }
    bytes
}

/// Length of what [`encode`] returns.
pub(super) fn encoded_len(xattrs: &[Xattr]) -> usize {
    let entry = |xattr: &Xattr| {
        let rest = split(&xattr.name).map_or(0, |(_, rest)| rest.len());
        (ENTRY + rest + xattr.value.len()).next_multiple_of(ENTRY)
    };
    if xattrs.is_empty() { 0 } else { HEADER + xattrs.iter().map(entry).sum::<usize>() }
}

/// `i_xattr_icount` of attributes of `len` bytes.
pub(super) fn count(len: usize) -> u16 {
    if len == 0 { 0 } else { u16::try_from((len - HEADER) / ENTRY + 1).unwrap_or(u16::MAX) }
}

/// Bytes of the attributes of an inode with this `i_xattr_icount`.
pub(super) fn len_of_count(count: u16) -> usize {
    if count == 0 { 0 } else { HEADER + ENTRY * (usize::from(count) - 1) }
}

/// Decodes the attributes of an inode. `None` if they are malformed or shared between inodes.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Xattr>> {
    let mut xattrs = Vec::new();
    if bytes.is_empty() {
        return Some(xattrs);
    }
    let shared = *bytes.get(4)?;
    let mut rest = bytes.get(HEADER..).filter(|_| shared == 0)?;
    while !rest.is_empty() {
        let (entry, after) = rest.split_at_checked(ENTRY)?;
        let (name_len, value_len) =
            (usize::from(entry[0]), usize::from(u16::from_le_bytes([entry[2], entry[3]])));
        let (prefix, _) = PREFIXES.iter().find(|(_, index)| *index == entry[1])?;
        let padded = (ENTRY + name_len + value_len).next_multiple_of(ENTRY) - ENTRY;
        let (body, next) = after.split_at_checked(padded)?;
        let name = [prefix, &body[..name_len]].concat();
        split(&name)?;
        let value = body[name_len..name_len + value_len].into();
        xattrs.push(Xattr { name: name.into(), value });
        rest = next;
    }
    Some(xattrs)
}
