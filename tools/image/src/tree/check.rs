//! Checks of single files, and of the complete tree.

use std::collections::BTreeMap;

use super::path::{self, show};
use super::{Attributes, Device, InodeId, Node, Tree, TreeError};
use crate::Limits;
use crate::erofs::xattr;

/// Most bytes of the extended attributes of one inode, names and values (Linux `XATTR_SIZE_MAX`).
const MAX_XATTRS: usize = 65_536;

pub(super) fn node(node: &Node, limits: &Limits) -> Result<(), TreeError> {
    match node {
        Node::Regular { size, .. } if *size > limits.file_bytes => {
            Err(TreeError::FileTooLong { size: *size, limit: limits.file_bytes })
        }
        Node::Symlink(target)
            if target.is_empty() || target.len() > path::MAX_PATH || target.contains(&0) =>
        {
            Err(TreeError::SymlinkTarget)
        }
        &Node::Character(Device { major, minor }) | &Node::Block(Device { major, minor })
            if major >= 1 << 12 || minor >= 1 << 20 =>
        {
            Err(TreeError::DeviceNumber { major, minor })
        }
        _ => Ok(()),
    }
}

/// Checks and sorts extended attributes, and clears all but the low 12 bits of the mode.
pub(super) fn attributes(mut attributes: Attributes) -> Result<Attributes, TreeError> {
    attributes.mode &= 0o7777;
    let xattrs = &mut attributes.xattrs;
    xattrs.sort();
    let bytes = xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum();
    if bytes > MAX_XATTRS {
        return Err(TreeError::XattrsTooLong { bytes });
    }
    let refuse = |name: &[u8], reason| Err(TreeError::Xattr { name: show(name), reason });
    for pair in xattrs.windows(2) {
        if pair[0].name == pair[1].name {
            return refuse(&pair[0].name, "it is listed twice");
        }
    }
    for xattr in xattrs.iter() {
        // The guest mounts the image as the lower layer of an overlay, to which these names give orders.
        let overlay = [&b"trusted.overlay."[..], b"user.overlay."];
        if overlay.iter().any(|prefix| xattr.name.starts_with(prefix)) {
            return refuse(&xattr.name, "it would control an overlay above the image");
        }
        if xattr::split(&xattr.name).is_none() {
            return refuse(&xattr.name, "Linux stores only user.*, trusted.*, security.* and ACLs");
        }
    }
    Ok(attributes)
}

impl Tree {
    /// Checks the complete tree: names that differ only in case (unless `case_collisions` allows them),
    /// symbolic links that climb above the root, and the total length of all files.
    ///
    /// # Errors
    ///
    /// The path of the first file that is refused, and the reason.
    pub fn check(&self, case_collisions: bool) -> Result<(), (Vec<u8>, TreeError)> {
        let mut bytes = 0_u64;
        let mut counted = vec![false; self.len()];
        let mut path = Vec::new();
        self.check_directory(InodeId::ROOT, &mut path, 0, &mut |inode, id, path, depth| {
            match &inode.node {
                Node::Regular { size, .. } if !counted[id.index()] => {
                    counted[id.index()] = true;
                    bytes = bytes.saturating_add(*size);
                    let limit = self.limits.image_bytes;
                    if bytes > limit {
                        return Err((path.to_vec(), TreeError::ImageTooLong { limit }));
                    }
                }
                Node::Symlink(target) if climbs_out(target, depth) => {
                    let target = show(target);
                    return Err((path.to_vec(), TreeError::SymlinkLeadsOut { target }));
                }
                Node::Directory if !case_collisions => {
                    if let Some((first, second)) = collision(inode.children().map(|(name, _)| name))
                    {
                        let (first, second) = (show(first), show(second));
                        return Err((path.to_vec(), TreeError::CaseCollision { first, second }));
                    }
                }
                _ => {}
            }
            Ok(())
        })
    }

    fn check_directory<E>(
        &self,
        id: InodeId,
        path: &mut Vec<u8>,
        depth: usize,
        visit: &mut impl FnMut(&super::Inode, InodeId, &[u8], usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let inode = self.inode(id);
        visit(inode, id, path, depth)?;
        for (name, child) in inode.children() {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            self.check_directory(child, path, depth + 1, visit)?;
            path.truncate(length);
        }
        Ok(())
    }

    /// Calls `visit` for each name below the root and the root itself, directories before their content,
    /// sorted by bytes. Paths do not start with a slash; the root's is empty.
    ///
    /// # Errors
    ///
    /// The first error of `visit`.
    pub fn walk<E>(&self, mut visit: impl FnMut(&[u8], InodeId) -> Result<(), E>) -> Result<(), E> {
        let mut path = Vec::new();
        self.check_directory(InodeId::ROOT, &mut path, 0, &mut |_, id, path, _| visit(path, id))
    }
}

/// Whether a relative target, as seen from `depth` names below the root, climbs above the root.
fn climbs_out(target: &[u8], depth: usize) -> bool {
    if target.starts_with(b"/") {
        // The guest resolves it from its own root, which is the image.
        return false;
    }
    let mut height = depth.saturating_sub(1);
    for name in target.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if height == 0 => return true,
            b".." => height -= 1,
            _ => height += 1,
        }
    }
    false
}

fn collision<'a>(names: impl Iterator<Item = &'a [u8]>) -> Option<(&'a [u8], &'a [u8])> {
    let mut folded = BTreeMap::new();
    for name in names {
        let key = std::str::from_utf8(name)
            .map_or_else(|_| name.to_ascii_lowercase(), |text| text.to_lowercase().into_bytes());
        if let Some(first) = folded.insert(key, name) {
            return Some((first, name));
        }
    }
    None
}
