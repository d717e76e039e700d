//! Why a package, or a file out of one, could not be had.

use std::path::PathBuf;

use crate::cache::CacheError;
use crate::process::ProcessError;

/// Why a package, or a file out of one, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Neither `name=version` nor `name/suite`.
    #[error("{text:?} names no Debian package: write name=version or name/suite")]
    Spec {
        /// What was given.
        text: String,
    },
    /// Without keys no signature can be checked.
    #[error(
        "{} is missing, without which Debian's signatures cannot be checked: \
         install the package debian-archive-keyring",
        path.display()
    )]
    NoKeyring {
        /// The keyring.
        path: PathBuf,
    },
    /// This machine's apt knows no Debian mirror.
    #[error(
        "this machine's apt sources have no Debian mirror: set CASEMATE_DEBIAN_MIRROR to the URI \
         of one, the directory that has `dists`"
    )]
    NoMirror,
    /// The archive has no such package (any more).
    #[error(
        "{spec} is in none of the suites {suites}: Debian keeps only the newest of each; give the \
         files in a directory by CASEMATE_BLOBS, or a mirror that still has it by \
         CASEMATE_DEBIAN_MIRROR"
    )]
    NotInArchive {
        /// What was asked for.
        spec: String,
        /// Where it was looked for.
        suites: String,
    },
    /// The package has other files.
    #[error("the package {package} has no file {path}")]
    NoFile {
        /// What was asked for.
        path: String,
        /// In which package.
        package: String,
    },
    /// Other bytes than expected.
    #[error("{} has SHA-256 {actual}, not {expected}: remove it, or correct what is expected", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// 64 hexadecimal digits.
        expected: String,
        /// 64 hexadecimal digits.
        actual: String,
    },
    /// A tool of Debian's failed.
    #[error(transparent)]
    Tool(#[from] ProcessError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}
