//! What a path leads to. The one place of this crate that differs between operating systems: a verifier reads
//! the configuration of a guest on any.

use std::fs::Metadata;
use std::path::Path;

#[cfg(unix)]
mod os {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;

    pub(crate) type Identity = (u64, u64);

    /// Device and inode: two paths can name one file.
    pub(crate) fn identity(path: &Path) -> Option<Identity> {
        path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    pub(crate) fn is_block_device(metadata: &Metadata) -> bool {
        metadata.file_type().is_block_device()
    }

    pub(crate) fn is_socket(metadata: &Metadata) -> bool {
        metadata.file_type().is_socket()
    }
}

#[cfg(not(unix))]
mod os {
    use std::path::PathBuf;

    use super::*;

    pub(crate) type Identity = PathBuf;

    /// The path without links.
    pub(crate) fn identity(path: &Path) -> Option<Identity> {
        path.canonicalize().ok()
    }

    pub(crate) fn is_block_device(_: &Metadata) -> bool {
        false
    }

    pub(crate) fn is_socket(_: &Metadata) -> bool {
        false
    }
}

pub(crate) use os::{Identity, identity, is_block_device, is_socket};
