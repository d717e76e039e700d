//! A directory as an image. Nothing is followed out of it, and other file systems are not entered.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::SourceError;
use crate::tree::{Attributes, Content, Device, Node, Tree, TreeError, Xattr, show};

/// Longest list of names, and longest value, of extended attributes in bytes (Linux `XATTR_LIST_MAX`).
const MAX_XATTR: usize = 65_536;

/// Reason to refuse a directory.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum DirectoryError {
    #[error("could not {action} `{path}`; run as a user who may read all of it")]
    Read { action: &'static str, path: String, source: Errno },
    #[error("`{path}` is refused")]
    File { path: String, source: TreeError },
    #[error("`{path}` is the root of another file system; unmount it, or copy the directory")]
    MountPoint { path: String },
    #[error("`{path}` was last modified before 1970; set its time with touch")]
    Time { path: String },
    #[error("`{path}` changed while the image was built; build again")]
    Changed { path: String },
}

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Directory {
    root: OwnedFd,
    all_root: bool,
}

/// State of a scan.
struct Scan<'a> {
    tree: &'a mut Tree,
    device: u64,
    all_root: bool,
    /// First path of each file that has several, by device and inode number.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl Directory {
    pub(super) fn open(path: &Path, all_root: bool) -> Result<Self, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty());
        let root =
            root.map_err(|error| SourceError::Read { path: path.into(), source: error.into() });
        Ok(Self { root: root?, all_root })
    }

    /// Adds all files as layer 1.
    pub(super) fn scan(&self, tree: &mut Tree) -> Result<(), DirectoryError> {
        let stat = fs::fstat(&self.root).map_err(failed("read", b"."))?;
        let (device, all_root) = (stat.st_dev, self.all_root);
        let mut scan =
            Scan { tree, device, all_root, links: BTreeMap::new(), buffer: vec![0; MAX_XATTR] };
        scan.add(self.root.as_fd(), c".", &[], &stat)?;
        scan.directory(self.root.as_fd(), &[])
    }

    /// Opens a regular file that the scan found.
    pub(super) fn open_file(&self, path: &[u8], size: u64) -> Result<File, DirectoryError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
        let file = file.map_err(failed("open", path))?;
        let stat = fs::fstat(&file).map_err(failed("read", path))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !regular || u64::try_from(stat.st_size) != Ok(size) {
            return Err(DirectoryError::Changed { path: show(path) });
        }
        Ok(file.into())
    }
}

fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> DirectoryError + use<> {
    let path = show(path);
    move |source| DirectoryError::Read { action, path, source }
}

impl Scan<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), DirectoryError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed("list", path))? {
            let name: CString = entry.map_err(failed("list", path))?.file_name().into();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        // Which name of a file comes first must not depend on the file system.
        names.sort_unstable();
        for name in names {
            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let path = [path, separator, name.as_bytes()].concat();
            let stat = fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(failed("read", &path))?;
            self.add(directory, &name, &path, &stat)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                if stat.st_dev != self.device {
                    return Err(DirectoryError::MountPoint { path: show(&path) });
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = fs::openat(directory, &name, flags, Mode::empty());
                self.directory(below.map_err(failed("open", &path))?.as_fd(), &path)?;
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), DirectoryError> {
        let refuse = |source| DirectoryError::File { path: show(path), source };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let key = (stat.st_dev, stat.st_ino);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&key) {
                return self.tree.link(1, path, first).map_err(refuse);
            }
            self.links.insert(key, path.to_vec());
        }
        let device = || Device { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) };
        let changed = || DirectoryError::Changed { path: show(path) };
        let node = match kind {
            FileType::Directory => Node::Directory,
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).map_err(|_| changed())?;
                Node::Regular { size, content: Content::Directory }
            }
            FileType::Symlink => {
                let target = fs::readlinkat(directory, name, Vec::new());
                Node::Symlink(target.map_err(failed("read", path))?.into_bytes().into())
            }
            FileType::CharacterDevice => Node::Character(device()),
            FileType::BlockDevice => Node::Block(device()),
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            FileType::Unknown => return Err(changed()),
        };
        let mtime = u64::try_from(stat.st_mtime);
        let (uid, gid) = if self.all_root { (0, 0) } else { (stat.st_uid, stat.st_gid) };
        let attributes = Attributes {
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
            uid,
            gid,
            mtime: mtime.map_err(|_| DirectoryError::Time { path: show(path) })?,
            xattrs: self.xattrs(directory, name, path)?,
        };
        self.tree.insert(1, path, attributes, node).map_err(refuse)
    }

    /// Extended attributes that belong to an image. Labels of the host's policy, and attributes that only root
    /// sees, do not: the image would depend on who builds it, and where.
    fn xattrs(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<Vec<Xattr>, DirectoryError> {
        // The functions for symbolic links take paths, not descriptors.
        let mut file = OsString::from(format!("/proc/self/fd/{}/", directory.as_raw_fd()));
        file.push(OsStr::from_bytes(name.to_bytes()));
        let listed = match fs::llistxattr(&file, &mut self.buffer[..]) {
            Ok(listed) => listed,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(failed("read the attributes of", path)(error)),
        };
        let names = self.buffer[..listed].to_vec();
        let mut xattrs = Vec::new();
        for name in names.split(|&byte| byte == 0).filter(|name| belongs(name)) {
            let len = fs::lgetxattr(&file, name, &mut self.buffer[..]);
            let len = len.map_err(failed("read the attributes of", path))?;
            xattrs.push(Xattr { name: name.into(), value: self.buffer[..len].into() });
        }
        Ok(xattrs)
    }
}

fn belongs(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}
