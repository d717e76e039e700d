//! Assignment of inodes and data to places in the image. A function of the tree alone.

use super::ondisk::{DIRENT_LEN, INODE_LEN, SLOT};
use super::{BLOCK, xattr};
use crate::tree::{InodeId, Node, Tree};

/// Reason why a tree does not fit into an erofs image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// erofs counts blocks in 32 bits.
    #[error(
        "the image would have {blocks} blocks of 4 KiB, more than erofs can count (4294967295)"
    )]
    TooManyBlocks {
        /// Number of blocks.
        blocks: u64,
    },
}

/// Place of one inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Offset of the inode in the image, in bytes.
    pub(super) offset: u64,
    /// Length of its data in bytes.
    pub(super) len: u64,
    /// First block of its data; 0 without such.
    pub(super) block: u32,
    /// Bytes of its data that follow the inode and its extended attributes; the rest is in blocks.
    pub(super) tail: u64,
    /// Number for `stat`, from 1.
    pub(super) number: u32,
    /// The directory above, for directories.
    pub(super) parent: InodeId,
    /// Bytes of the extended attributes.
    pub(super) xattrs: u64,
    /// Directories in it.
    pub(super) subdirectories: u32,
}

impl Place {
    /// Node number of the inode, in slots of 32 bytes.
    pub(super) const fn nid(&self) -> u64 {
        self.offset / SLOT
    }

    /// Offset of the tail in the image, in bytes.
    pub(super) const fn tail_offset(&self) -> u64 {
        self.offset + INODE_LEN + self.xattrs
    }
}

/// Layout of an image: where each inode of a tree and its data are.
#[derive(Debug)]
pub struct Layout<'a> {
    pub(super) tree: &'a Tree,
    /// Inodes in the order in which the image has them: directories before their content, sorted by name.
    pub(super) order: Vec<InodeId>,
    places: Vec<Option<Place>>,
    /// First block after the inodes.
    pub(super) data_start: u64,
    blocks: u32,
}

impl<'a> Layout<'a> {
    /// Lays a tree out.
    ///
    /// # Errors
    ///
    /// If the image would be too long.
    pub fn new(tree: &'a Tree) -> Result<Self, LayoutError> {
        let mut layout = Self {
            tree,
            order: Vec::new(),
            places: vec![None; tree.len()],
            data_start: 0,
            blocks: 0,
        };
        // The superblock has the first block for itself, so that its checksum depends on no file.
        let mut end = BLOCK;
        layout.place_inodes(InodeId::ROOT, InodeId::ROOT, &mut end);
        layout.data_start = end.div_ceil(BLOCK);
        let mut next = layout.data_start;
        for &id in &layout.order {
            if let Some(place) = &mut layout.places[id.index()] {
                let blocks = (place.len - place.tail).div_ceil(BLOCK);
                // Checked below, as the last place is the highest one.
                place.block = if blocks == 0 { 0 } else { u32::try_from(next).unwrap_or(u32::MAX) };
                next += blocks;
            }
        }
        layout.blocks =
            u32::try_from(next).map_err(|_| LayoutError::TooManyBlocks { blocks: next })?;
        Ok(layout)
    }

    /// Length of the image in blocks of 4 KiB.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Number of inodes.
    pub fn inodes(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn tree(&self) -> &'a Tree {
        self.tree
    }

    /// Inodes in the order in which the image has them.
    pub(crate) fn order(&self) -> &[InodeId] {
        &self.order
    }

    pub(super) fn place(&self, id: InodeId) -> Option<&Place> {
        self.places[id.index()].as_ref()
    }

    fn place_inodes(&mut self, id: InodeId, parent: InodeId, end: &mut u64) {
        if self.places[id.index()].is_some() {
            // Another name of a file.
            return;
        }
        let inode = self.tree.inode(id);
        let len = match &inode.node {
            Node::Regular { size, .. } => *size,
            Node::Symlink(target) => target.len() as u64,
            Node::Directory => directory_len(&names(self.tree, id, parent)),
            _ => 0,
        };
        let xattrs = xattr::encoded_len(&inode.attributes.xattrs) as u64;
        let fixed = INODE_LEN + xattrs;
        let tail = if fixed + len % BLOCK <= BLOCK { len % BLOCK } else { 0 };
        // An inode and its tail are within one block; only long extended attributes go on in the next.
        let wanted = fixed + tail;
        let offset = end.next_multiple_of(SLOT);
        let left = BLOCK - offset % BLOCK;
        let offset = if wanted > left { offset.next_multiple_of(BLOCK) } else { offset };
        *end = offset + wanted;
        let number = u32::try_from(self.order.len() + 1).unwrap_or(u32::MAX);
        let directories =
            |(_, child): &(_, InodeId)| self.tree.inode(*child).node == Node::Directory;
        let directories = inode.children().filter(directories).count();
        let subdirectories = u32::try_from(directories).unwrap_or(u32::MAX);
        let place = Place { offset, len, block: 0, tail, number, parent, xattrs, subdirectories };
        self.places[id.index()] = Some(place);
        self.order.push(id);
        for (_, child) in inode.children() {
            self.place_inodes(child, id, end);
        }
    }
}

/// Names of a directory with `.` and `..`, sorted by bytes.
pub(super) fn names(tree: &Tree, id: InodeId, parent: InodeId) -> Vec<(&[u8], InodeId)> {
    let mut names: Vec<_> = tree.inode(id).children().collect();
    names.extend([(&b"."[..], id), (b"..", parent)]);
    names.sort_unstable();
    names
}

/// Cuts the names of a directory into blocks.
pub(super) fn directory_blocks<'n, 't>(
    names: &'n [(&'t [u8], InodeId)],
) -> impl Iterator<Item = &'n [(&'t [u8], InodeId)]> {
    let mut rest = names;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fits = |name: &&(&[u8], InodeId)| {
            used += DIRENT_LEN + name.0.len();
            used as u64 <= BLOCK
        };
        let count = rest.iter().take_while(fits).count();
        let (block, after) = rest.split_at(count);
        rest = after;
        (count > 0).then_some(block)
    })
}

/// Length of a directory: whole blocks, and what is used of the last one.
fn directory_len(names: &[(&[u8], InodeId)]) -> u64 {
    let used = |block: &[(&[u8], InodeId)]| -> u64 {
        block.iter().map(|(name, _)| (DIRENT_LEN + name.len()) as u64).sum()
    };
    directory_blocks(names).fold(0_u64, |len, block| len.next_multiple_of(BLOCK) + used(block))
}
