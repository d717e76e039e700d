//! Why a package, or a file out of one, could not be had.

use std::fmt;
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
    /// Neither this machine's apt nor python-apt-common names a Debian mirror.
    #[error(
        "this machine's apt sources have no Debian mirror: install the packages python-apt-common, \
         which names one, and ca-certificates; or set CASEMATE_DEBIAN_MIRROR to the URI of one, the \
         directory that has `dists`"
    )]
    NoMirror,
    /// No mirror gave its package lists.
    #[error("Debian's package lists could not be had{failures}")]
    Mirrors {
        /// What was tried, and how it ended.
        failures: Failures,
    },
    /// The archive has no such package (any more).
    #[error(
        "none of the suites {suites} has {tried}: Debian keeps only the newest version of each suite; \
         give the files in a directory by CASEMATE_BLOBS, or a mirror that still has one of these by \
         CASEMATE_DEBIAN_MIRROR"
    )]
    NotInArchive {
        /// The package, and what was tried instead.
        tried: String,
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

/// Mirrors that were tried, and how that ended.
#[derive(Debug)]
pub struct Failures(pub(super) Vec<(String, ProcessError)>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut no_key = false;
        for (mirror, error) in &self.0 {
            let error = error.to_string();
            no_key |= error.contains("NO_PUBKEY") || error.contains("Missing key");
            // apt's own summary: of many suites the first few say it.
            let summary: Vec<_> =
                error.lines().filter(|line| line.starts_with("E: ")).take(3).collect();
            let summary = if summary.is_empty() { error.clone() } else { summary.join("\n") };
            write!(f, "\nfrom {mirror}:\n{summary}")?;
        }
        if no_key {
            write!(
                f,
                "\nThis machine's debian-archive-keyring may be older than the keys that Debian signs \
                 with now: install a newer version, such as that of a later release of Debian or \
                 Ubuntu, which fits any"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_keyring_is_told_from_other_failures() {
        let failed = |output: &str| PackageError::Mirrors {
            failures: Failures(vec![(
                "http://mirror.example/debian".into(),
                ProcessError::Failed {
                    command: "apt-get update".into(),
                    status: "exit status: 100".into(),
                    output: output.into(),
                },
            )]),
        };
        let text =
            failed("W: GPG error: NO_PUBKEY 0123\nE: The repository is not signed.").to_string();
        assert!(text.contains("from http://mirror.example/debian:\nE: The repository"), "{text}");
        assert!(text.contains("debian-archive-keyring may be older"), "{text}");
        let text = failed("Could not resolve 'mirror.example'").to_string();
        assert!(text.contains("Could not resolve 'mirror.example'"), "{text}");
        assert!(!text.contains("debian-archive-keyring"), "{text}");
    }
}
