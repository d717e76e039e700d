//! The files of an image as one tree: what layers, one upon the other, come to.
//!
//! OCI image specification, "Image Layer Filesystem Changeset": a layer adds and replaces files, and removes
//! those of the layers below it by whiteouts. Nothing here depends on the order of members within a layer,
//! apart from hard links, whose targets must come first.

use std::collections::BTreeMap;

mod check;
mod error;
mod path;

pub use error::TreeError;
pub(crate) use path::show;

use crate::Limits;

/// Prefix of the names of whiteouts (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Name of an opaque whiteout.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Symbolic links that are followed for one path, as in Linux (`MAXSYMLINKS`).
const MAX_FOLLOWED: usize = 40;
/// Bytes counted for each name and inode beside the bytes of the names.
const OVERHEAD: u64 = 32;

/// Index of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Whole name, as in `security.capability`.
    pub name: Box<[u8]>,
    /// Value, at most 65,535 bytes.
    pub value: Box<[u8]>,
}

/// Attributes of an inode other than its kind and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-user-ID, set-group-ID and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, in whole seconds since 1970.
    pub mtime: u64,
    /// Extended attributes, in any order.
    pub xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Attributes of a directory that a layer implies by the path of a file and does not list.
    const IMPLIED: Self = Self { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
}

/// Number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Below 4,096, as in Linux.
    pub major: u32,
    /// Below 1,048,576, as in Linux.
    pub minor: u32,
}

/// Place of a regular file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// In a layer.
    Layer {
        /// Number of the layer, from 1.
        layer: u32,
        /// Offset in the uncompressed layer, in bytes.
        offset: u64,
    },
    /// In the file of the same path below the source directory.
    Directory,
}

/// Kind of a new file, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Length in bytes.
        size: u64,
        /// Place of the bytes.
        content: Content,
    },
    /// A symbolic link to this target.
    Symlink(Box<[u8]>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Inode of the tree.
#[derive(Debug)]
pub struct Inode {
    /// Owner, permissions, time and extended attributes; the latter sorted by name.
    pub attributes: Attributes,
    /// Kind of file.
    pub node: Node,
    /// Number of names, which is 1 for a directory.
    pub links: u32,
    children: BTreeMap<Box<[u8]>, Child>,
}

impl Inode {
    /// Names and inodes of a directory, sorted by bytes; empty for other files.
    pub fn children(&self) -> impl ExactSizeIterator<Item = (&[u8], InodeId)> {
        self.children.iter().map(|(name, child)| (name.as_ref(), child.inode))
    }

    fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory)
    }
}

#[derive(Debug, Clone, Copy)]
struct Child {
    inode: InodeId,
    /// The last layer that set this name.
    layer: u32,
    /// Whether that layer lists it, and does not only imply it by a path below it.
    listed: bool,
}

/// A file tree under construction, or complete.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
    limits: Limits,
    metadata_bytes: u64,
    /// The last layer that lists the root directory.
    root_layer: u32,
}

impl Tree {
    /// Returns a tree of an empty root directory.
    pub fn new(limits: &Limits) -> Self {
        let root = Inode {
            attributes: Attributes::IMPLIED,
            node: Node::Directory,
            links: 1,
            children: BTreeMap::new(),
        };
        Self { inodes: vec![root], limits: limits.clone(), metadata_bytes: 0, root_layer: 0 }
    }

    /// Returns an inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// Number of inodes that were ever part of the tree: an upper bound of every [`InodeId`].
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Whether the tree is an empty root directory.
    pub fn is_empty(&self) -> bool {
        self.inodes[0].children.is_empty()
    }

    /// Adds a file of layer `layer` (from 1, in ascending order), or carries out a whiteout.
    ///
    /// `path` is relative to the root, as tar archives have it; a leading `./` and a trailing `/` mean nothing.
    ///
    /// # Errors
    ///
    /// If path, attributes or content are refused, or collide with others of the same layer.
    pub fn insert(
        &mut self,
        layer: u32,
        path: &[u8],
        attributes: Attributes,
        node: Node,
    ) -> Result<(), TreeError> {
        let names = path::split(path)?;
        let Some((name, parents)) = names.split_last() else {
            return self.set_root(layer, attributes, &node);
        };
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Err(TreeError::Whiteout);
        }
        if name.starts_with(WHITEOUT) {
            let empty = matches!(node, Node::Regular { size: 0, .. });
            return if empty {
                self.whiteout(layer, name, parents)
            } else {
                Err(TreeError::Whiteout)
            };
        }
        check::node(&node, &self.limits)?;
        let attributes = check::attributes(attributes)?;
        let parent = self.resolve(layer, parents, true)?.ok_or(TreeError::NotADirectory)?;
        if let Some(child) = self.child(parent, name) {
            if self.inode(child.inode).is_directory() && node == Node::Directory {
                if child.layer == layer && child.listed {
                    return Err(TreeError::Duplicate);
                }
                self.charge(&attributes, &node)?;
                self.inodes[child.inode.index()].attributes = attributes;
                self.set_child(parent, name, Child { layer, listed: true, ..child });
                return Ok(());
            }
            self.remove_lower(parent, name, child, layer)?;
        }
        let inode = self.allocate(attributes, node)?;
        self.add_child(parent, name, Child { inode, layer, listed: true })
    }

    /// Adds another name, `path`, to the file that `target` names, which must be there.
    ///
    /// # Errors
    ///
    /// If one of the paths is refused, or `target` is not a file.
    pub fn link(&mut self, layer: u32, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let target = path::split(target).map_err(|_| TreeError::LinkTarget)?;
        let (target_name, target_parents) = target.split_last().ok_or(TreeError::LinkTarget)?;
        let directory = self.resolve(layer, target_parents, false)?;
        let target = directory.and_then(|directory| self.child(directory, target_name));
        let target = target.ok_or(TreeError::LinkTarget)?.inode;
        if self.inode(target).is_directory() {
            return Err(TreeError::LinkTarget);
        }
        let names = path::split(path)?;
        let (name, parents) = names.split_last().ok_or(TreeError::Duplicate)?;
        if names.iter().any(|name| name.starts_with(WHITEOUT)) {
            return Err(TreeError::Whiteout);
        }
        let parent = self.resolve(layer, parents, true)?.ok_or(TreeError::NotADirectory)?;
        // Counted first, so that a name that replaces the only other one does not drop the inode.
        self.inodes[target.index()].links += 1;
        if let Some(child) = self.child(parent, name) {
            self.remove_lower(parent, name, child, layer)?;
        }
        self.add_child(parent, name, Child { inode: target, layer, listed: true })
    }

    fn set_root(
        &mut self,
        layer: u32,
        attributes: Attributes,
        node: &Node,
    ) -> Result<(), TreeError> {
        if *node != Node::Directory {
            return Err(TreeError::NotADirectory);
        }
        if self.root_layer == layer {
            return Err(TreeError::Duplicate);
        }
        self.root_layer = layer;
        let attributes = check::attributes(attributes)?;
        self.charge(&attributes, node)?;
        self.inodes[0].attributes = attributes;
        Ok(())
    }

    fn whiteout(&mut self, layer: u32, name: &[u8], parents: &[&[u8]]) -> Result<(), TreeError> {
        if name == OPAQUE {
            let directory = self.resolve(layer, parents, true)?.ok_or(TreeError::NotADirectory)?;
            self.prune(directory, layer);
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden.starts_with(WHITEOUT) || matches!(hidden, b"." | b"..") {
            return Err(TreeError::Whiteout);
        }
        let Some(parent) = self.resolve(layer, parents, false)? else { return Ok(()) };
        if let Some(child) = self.child(parent, hidden) {
            self.prune_child(parent, hidden, child, layer);
        }
        Ok(())
    }

    /// Removes what layers below `layer` put into a directory. Returns whether anything is left.
    fn prune(&mut self, directory: InodeId, layer: u32) -> bool {
        let children: Vec<_> = self.inode(directory).children.clone().into_iter().collect();
        let mut left = false;
        for (name, child) in children {
            left |= self.prune_child(directory, &name, child, layer);
        }
        left
    }

    fn prune_child(&mut self, parent: InodeId, name: &[u8], child: Child, layer: u32) -> bool {
        let holds = self.inode(child.inode).is_directory() && self.prune(child.inode, layer);
        if child.layer >= layer {
            return true;
        }
        if holds {
            // Files of this layer imply a directory; the one of the lower layers is gone.
            self.inodes[child.inode.index()].attributes = Attributes::IMPLIED;
            self.set_child(parent, name, Child { layer, listed: false, ..child });
        } else {
            self.drop_child(parent, name);
        }
        holds
    }

    /// Removes a file of a lower layer, which a file of this layer replaces.
    fn remove_lower(
        &mut self,
        parent: InodeId,
        name: &[u8],
        child: Child,
        layer: u32,
    ) -> Result<(), TreeError> {
        if child.layer >= layer
            || self.inode(child.inode).is_directory() && self.prune(child.inode, layer)
        {
            return Err(TreeError::Duplicate);
        }
        self.drop_child(parent, name);
        Ok(())
    }

    fn drop_child(&mut self, parent: InodeId, name: &[u8]) {
        if let Some(child) = self.inodes[parent.index()].children.remove(name) {
            let inode = &mut self.inodes[child.inode.index()];
            inode.links = inode.links.saturating_sub(1);
        }
    }

    /// Finds the directory that `names` lead to, through symbolic links that stay inside; makes what is
    /// missing if `create` is set.
    fn resolve(
        &mut self,
        layer: u32,
        names: &[&[u8]],
        create: bool,
    ) -> Result<Option<InodeId>, TreeError> {
        let mut pending: Vec<Box<[u8]>> = names.iter().rev().map(|&name| name.into()).collect();
        let mut directories = vec![InodeId::ROOT];
        let mut followed = 0;
        while let Some(name) = pending.pop() {
            let here = *directories.last().unwrap_or(&InodeId::ROOT);
            match name.as_ref() {
                b"" | b"." => continue,
                b".." if directories.len() == 1 => return Err(TreeError::LeadsOut),
                b".." => {
                    directories.pop();
                    continue;
                }
                _ => {}
            }
            let next = match self.child(here, &name) {
                Some(child) => child.inode,
                None if !create => return Ok(None),
                None => {
                    let inode = self.allocate(Attributes::IMPLIED, Node::Directory)?;
                    self.add_child(here, &name, Child { inode, layer, listed: false })?;
                    inode
                }
            };
            match &self.inode(next).node {
                Node::Directory => directories.push(next),
                Node::Symlink(target) if target.starts_with(b"/") => {
                    return Err(TreeError::ThroughAbsolute { link: show(&name) });
                }
                Node::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_FOLLOWED {
                        return Err(TreeError::LinkLoop);
                    }
                    pending.extend(target.split(|&byte| byte == b'/').rev().map(Box::from));
                }
                _ => return Err(TreeError::NotADirectory),
            }
            if directories.len() > self.limits.depth {
                return Err(TreeError::TooDeep { limit: self.limits.depth });
            }
        }
        Ok(directories.last().copied())
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<Child> {
        self.inode(directory).children.get(name).copied()
    }

    fn set_child(&mut self, directory: InodeId, name: &[u8], child: Child) {
        self.inodes[directory.index()].children.insert(name.into(), child);
    }

    fn add_child(&mut self, parent: InodeId, name: &[u8], child: Child) -> Result<(), TreeError> {
        self.charge_bytes(name.len())?;
        self.set_child(parent, name, child);
        Ok(())
    }

    /// Makes an inode with one name, which the caller adds.
    fn allocate(&mut self, attributes: Attributes, node: Node) -> Result<InodeId, TreeError> {
        let too_many = TreeError::TooManyInodes { limit: self.limits.inodes };
        let id = u32::try_from(self.inodes.len()).ok().filter(|&id| id < self.limits.inodes);
        let id = InodeId(id.ok_or(too_many)?);
        self.charge(&attributes, &node)?;
        self.inodes.push(Inode { attributes, node, links: 1, children: BTreeMap::new() });
        Ok(id)
    }

    fn charge(&mut self, attributes: &Attributes, node: &Node) -> Result<(), TreeError> {
        let xattrs = attributes.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len());
        let target = if let Node::Symlink(target) = node { target.len() } else { 0 };
        self.charge_bytes(xattrs.sum::<usize>() + target)
    }

    fn charge_bytes(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.metadata_bytes += bytes as u64 + OVERHEAD;
        if self.metadata_bytes > self.limits.metadata_bytes {
            return Err(TreeError::TooMuchMetadata { limit: self.limits.metadata_bytes });
        }
        Ok(())
    }
}
