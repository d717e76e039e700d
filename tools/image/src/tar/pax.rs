//! Extended headers (POSIX.1-2024, pax, "pax Extended Header"): lines of `LENGTH KEY=VALUE`.

use std::collections::BTreeSet;

use crate::tree::Xattr;

/// Prefix of extended attributes, as star, GNU tar and Go write them.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Records of an extended header that an image uses; they describe the next member.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<u64>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: bool,
    count: usize,
    comments: usize,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn only_comment(&self) -> bool {
        self.count == self.comments
    }
}

pub(super) fn parse(mut bytes: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    let mut keys = BTreeSet::new();
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes).ok_or("expected `LENGTH KEY=VALUE` lines")?;
        if !keys.insert(key) {
            return Err("a key is repeated");
        }
        records.take(key, value)?;
        records.count += 1;
        bytes = rest;
    }
    Ok(records)
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Takes one record off: key, value and what follows.
fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

impl Records {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("a number is malformed");
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                self.mtime = Some(seconds(value).ok_or("a time is malformed or before 1970")?);
            }
            b"comment" => self.comments += 1,
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ if key.starts_with(b"SCHILY.acl.") => {
                return Err("ACLs as text are unsupported; store them as extended attributes");
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push(Xattr { name: name.into(), value: value.into() });
                }
            }
        }
        Ok(())
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whole seconds of a decimal number.
fn seconds(value: &[u8]) -> Option<u64> {
    let mut parts = value.splitn(2, |&byte| byte == b'.');
    let whole = decimal(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    fraction.iter().all(u8::is_ascii_digit).then_some(whole)
}
