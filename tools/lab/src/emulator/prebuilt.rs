//! What somebody built before, taken when it was made of exactly what is here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Building, EmulatorError, hash, make_executable};
use crate::cache::{Cache, CacheError};
use crate::kernel::{KernelError, unpack_xz};
use crate::packages::{Packages, sha256};
use crate::progress::say;

/// Lines of `SHA-256  path`: what was built, and of what.
const BUILD_INFO: &str = "BUILD-INFO";
/// The Debian packages with the libraries of the prebuilt emulator, which was built on bookworm.
/// With them, and their own loader, it runs on any distribution.
const LIBRARIES: &[&str] = &[
    "libc6",
    "zlib1g",
    "libglib2.0-0",
    "libpcre2-8-0",
    "libpixman-1-0",
    "libfdt1",
    "libslirp0",
    "libssl3",
];

/// A prebuilt file whose record says that it was made of `source`, unpacked to `place` in the cache.
/// It is looked for in the directory `CASEMATE_LAB_PREBUILT`, and nowhere else. One that was made of
/// something else is left, which is said where one is built instead.
pub(super) fn get(
    cache: &Cache,
    place: &str,
    name: &str,
    source: &[u8],
    building: Building,
) -> Result<Option<PathBuf>, EmulatorError> {
    if let Some(kept) = cache.kept(place) {
        return Ok(Some(kept));
    }
    let file = match Prebuilt::find(name, source) {
        Prebuilt::Fits(file) => file,
        Prebuilt::Other { reason } => {
            // Whoever waits for a build wants to know why.
            if building == Building::Allowed {
                say(format_args!("not taking the prebuilt {name}: {reason}"));
            }
            return Ok(None);
        }
        Prebuilt::Nothing { named: Some((directory, reason)) } => {
            return Err(EmulatorError::Prebuilt { directory, reason });
        }
        Prebuilt::Nothing { named: None } => return Ok(None),
    };
    let kept = cache.get(place, |part| {
        say(format_args!("taking the prebuilt {}", file.display()));
        unpack(&file, part)
    })?;
    Ok(Some(kept))
}

/// What there is of a prebuilt file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Prebuilt {
    /// One that fits, still packed.
    Fits(PathBuf),
    /// One that was made of something else, or is not what its record says.
    Other {
        /// In words.
        reason: String,
    },
    /// None.
    Nothing {
        /// The directory that the variable names, and what is wrong with it.
        named: Option<(PathBuf, String)>,
    },
}

impl Prebuilt {
    pub(super) fn find(name: &str, source: &[u8]) -> Self {
        let Some(given) = std::env::var_os("CASEMATE_LAB_PREBUILT") else {
            return Self::Nothing { named: None };
        };
        let directory = PathBuf::from(given);
        Self::within(&directory, name, source)
            .unwrap_or_else(|reason| Self::Nothing { named: Some((directory, reason)) })
    }

    /// An error is why nothing is there, in words.
    fn within(directory: &Path, name: &str, source: &[u8]) -> Result<Self, String> {
        let (file, info) = (directory.join(name), directory.join(BUILD_INFO));
        let failed = |path: &Path, error| format!("{}: {error}", path.display());
        let record = fs::read_to_string(&info).map_err(|error| failed(&info, error))?;
        let actual = sha256(&file).map_err(|error| failed(&file, error))?;
        let other = |reason: String| Ok(Self::Other { reason });
        let wanted = hash(source);
        if !records(&record, &wanted, None) {
            return other(format!(
                "{} does not say that it was made of what is here (SHA-256 {wanted})",
                info.display()
            ));
        }
        if !records(&record, &actual, Some(name)) {
            return other(format!("it has SHA-256 {actual}, and {} another", info.display()));
        }
        Ok(Self::Fits(file))
    }
}

fn records(record: &str, hash: &str, name: Option<&str>) -> bool {
    record.lines().filter_map(|line| line.split_once(char::is_whitespace)).any(|(have, path)| {
        have == hash && name.is_none_or(|name| Path::new(path.trim()).ends_with(name))
    })
}

fn unpack(file: &Path, part: &Path) -> Result<(), EmulatorError> {
    let mut bytes = fs::read(file).map_err(CacheError::io("reading", file))?;
    if file.extension() == Some("xz".as_ref()) {
        bytes = unpack_xz(&bytes)
            .map_err(|source| KernelError::Unpack { path: file.into(), source })?;
    }
    fs::write(part, bytes).map_err(CacheError::io("writing", part))?;
    Ok(make_executable(part)?)
}

/// The command that runs `program` with the libraries that it was built with.
pub(super) fn with_libraries(
    program: &Path,
    packages: &Packages,
) -> Result<Vec<OsString>, EmulatorError> {
    let mut places = Vec::new();
    for library in LIBRARIES {
        let tree = packages.tree(&format!("{library}/bookworm").parse()?)?;
        for place in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
            places.push(tree.join(place));
        }
    }
    places.retain(|place| place.is_dir());
    let loader = places.iter().map(|place| place.join("ld-linux-x86-64.so.2"));
    let loader = loader.into_iter().find(|path| path.is_file()).unwrap_or_default();
    // A path with a colon in it would be two: the loader has no way to write it.
    let places =
        places.iter().map(|place| place.as_os_str()).collect::<Vec<_>>().join(":".as_ref());
    Ok(vec![loader.into(), "--library-path".into(), places, program.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_what_was_built_of_what() {
        let record = "built on a machine\nabc  emulator/some.patch\ndef  prebuilt/qemu.xz\n";
        assert!(records(record, "abc", None));
        assert!(records(record, "def", Some("qemu.xz")));
        assert!(!records(record, "abc", Some("qemu.xz")));
        assert!(!records(record, "emulator/some.patch", None));
    }

    const NAME: &str = "emulator.xz";

    /// A prebuilt file as it is kept, made of `source`.
    fn directory(source: &[u8]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), "packed").unwrap();
        let record = format!("{}  some.patch\n{}  out/{NAME}\n", hash(source), hash(b"packed"));
        fs::write(directory.path().join(BUILD_INFO), record).unwrap();
        directory
    }

    #[test]
    fn what_was_made_of_this_patch_is_taken() {
        let directory = directory(b"patch");
        let found = Prebuilt::within(directory.path(), NAME, b"patch");
        assert_eq!(found, Ok(Prebuilt::Fits(directory.path().join(NAME))));
    }

    #[test]
    fn what_was_made_of_another_patch_is_left_with_a_reason() {
        let directory = directory(b"patch");
        let reason = |found| match found {
            Ok(Prebuilt::Other { reason }) => reason,
            found => panic!("{found:?}"),
        };
        let said = reason(Prebuilt::within(directory.path(), NAME, b"another patch"));
        assert!(said.contains(&hash(b"another patch")), "{said}");
        // The record is right, but the file has changed since.
        fs::write(directory.path().join(NAME), "changed").unwrap();
        let said = reason(Prebuilt::within(directory.path(), NAME, b"patch"));
        assert!(said.contains(&hash(b"changed")), "{said}");
    }

    #[test]
    fn a_directory_without_it_is_told_from_one_that_is_not_there() {
        let directory = directory(b"patch");
        let missing = Prebuilt::within(directory.path(), "kernel", b"patch").unwrap_err();
        assert!(missing.contains("/kernel: No such file"), "{missing}");
        let nowhere = directory.path().join("nowhere");
        let missing = Prebuilt::within(&nowhere, NAME, b"patch").unwrap_err();
        assert!(missing.contains("nowhere/BUILD-INFO: No such file"), "{missing}");
    }
}
