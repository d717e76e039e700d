//! Writes all of an image but the content of regular files.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::layout::{Layout, Place, directory_blocks, names};
use super::ondisk::{
    self, DIRENT_LEN, FORMAT_INLINE, FORMAT_PLAIN, INODE_SIZE, SUPER_LEN, SUPER_OFFSET, Superblock,
};
use super::{BLOCK, BLOCK_LEN, xattr};
use crate::tree::{Inode, InodeId, Node};

/// Part of a file's content and of the image that belong together, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the image.
    pub(crate) offset: u64,
    /// Length.
    pub(crate) len: u64,
}

impl Layout<'_> {
    /// Places of a file's content, in its order.
    pub(crate) fn pieces(&self, id: InodeId) -> impl Iterator<Item = Piece> {
        let pieces = self.place(id).map(|place| {
            let body =
                Piece { offset: u64::from(place.block) * BLOCK, len: place.len - place.tail };
            [body, Piece { offset: place.tail_offset(), len: place.tail }]
        });
        pieces.into_iter().flatten().filter(|piece| piece.len > 0)
    }

    /// Content of a directory or symbolic link.
    fn content(&self, inode: &Inode, id: InodeId, place: &Place) -> Vec<u8> {
        match &inode.node {
            Node::Symlink(target) => target.to_vec(),
            Node::Directory => self.directory(id, place),
            _ => Vec::new(),
        }
    }

    /// Blocks of a directory: entries of node number, offset of the name, and type; then the names.
    fn directory(&self, id: InodeId, place: &Place) -> Vec<u8> {
        let names = names(self.tree, id, place.parent);
        let mut bytes: Vec<u8> = Vec::new();
        for block in directory_blocks(&names) {
            bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
            let mut name_offset = block.len() * DIRENT_LEN;
            for (name, child) in block {
                let nid = self.place(*child).map_or(0, Place::nid);
                bytes.extend(nid.to_le_bytes());
                // At most 4,096, as the names are within the block.
                bytes.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
                bytes.extend([ondisk::file_type(&self.tree.inode(*child).node), 0]);
                name_offset += name.len();
            }
            bytes.extend(block.iter().flat_map(|(name, _)| name.iter()));
        }
        bytes
    }

    fn first_block(&self) -> [u8; BLOCK_LEN] {
        let root = self.place(InodeId::ROOT).map_or(0, Place::nid);
        let superblock = Superblock {
            // The first inode is at the start of the second block.
            root: u16::try_from(root).unwrap_or(u16::MAX),
            inodes: self.inodes() as u64,
            blocks: self.blocks(),
        };
        let mut block = [0; BLOCK_LEN];
        let from = SUPER_OFFSET;
        block[from..from + SUPER_LEN].copy_from_slice(&superblock.encode());
        let checksum = ondisk::checksum(&block[from..]);
        block[from + 4..from + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// Writes superblock, inodes, directories and symbolic links. The gaps stay as they are and must be
/// zeros.
pub(crate) fn write_metadata<W: Write + Seek>(layout: &Layout<'_>, out: W) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, out);
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&layout.first_block())?;
    let mut at = BLOCK;
    let placed = || layout.order.iter().filter_map(|&id| Some((id, layout.place(id)?)));
    for (id, place) in placed() {
        let inode = layout.tree.inode(id);
        pad(&mut out, place.offset - at)?;
        out.write_all(&encode_inode(inode, place))?;
        out.write_all(&xattr::encode(&inode.attributes.xattrs))?;
        let content = layout.content(inode, id, place);
        let tail = content.len().saturating_sub(usize::try_from(place.tail).unwrap_or(usize::MAX));
        match inode.node {
            // Filled in later.
            Node::Regular { .. } => pad(&mut out, place.tail)?,
            _ => out.write_all(&content[tail..])?,
        }
        at = place.tail_offset() + place.tail;
    }
    for (id, place) in placed().filter(|(_, place)| place.block > 0) {
        let content = layout.content(layout.tree.inode(id), id, place);
        let body = content.len().min(usize::try_from(place.len - place.tail).unwrap_or(usize::MAX));
        if body > 0 {
            out.seek(SeekFrom::Start(u64::from(place.block) * BLOCK))?;
            out.write_all(&content[..body])?;
        }
    }
    out.flush()
}

fn pad(out: &mut impl Write, len: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), len), out).map(drop)
}

/// `struct erofs_inode_extended`.
fn encode_inode(inode: &Inode, place: &Place) -> [u8; INODE_SIZE] {
    let attributes = &inode.attributes;
    let format = if place.tail > 0 { FORMAT_INLINE } else { FORMAT_PLAIN };
    let location = match inode.node {
        Node::Character(device) | Node::Block(device) => ondisk::encode_device(device),
        _ => place.block,
    };
    let links = match inode.node {
        // Its name, its own `.`, and the `..` of each directory in it.
        Node::Directory => place.subdirectories + 2,
        _ => inode.links,
    };
    let mut bytes = [0; INODE_SIZE];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let xattrs = usize::try_from(place.xattrs).unwrap_or(usize::MAX);
    put(0, &format.to_le_bytes());
    put(2, &xattr::count(xattrs).to_le_bytes());
    put(4, &ondisk::mode(inode).to_le_bytes());
    put(8, &place.len.to_le_bytes());
    put(16, &location.to_le_bytes());
    put(20, &place.number.to_le_bytes());
    put(24, &attributes.uid.to_le_bytes());
    put(28, &attributes.gid.to_le_bytes());
    put(32, &attributes.mtime.to_le_bytes());
    put(44, &links.to_le_bytes());
    bytes
}
