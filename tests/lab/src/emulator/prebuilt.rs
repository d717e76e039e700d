//! What somebody built before, taken when it was made of exactly what is here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{EmulatorError, hash, make_executable};
use crate::cache::{Cache, CacheError};
use crate::kernel::{KernelError, unpack_xz};
use crate::packages::{Packages, sha256};
use crate::progress::say;
use crate::repository;

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
/// It is looked for in `CASEMATE_LAB_PREBUILT`, else in `../shared/lab/prebuilt` beside the
/// repository.
pub(super) fn get(
    cache: &Cache,
    place: &str,
    name: &str,
    source: &[u8],
) -> Result<Option<PathBuf>, EmulatorError> {
    let kept = cache.path(place);
    if kept.is_file() {
        return Ok(Some(kept));
    }
    let Some(file) = find(name, source) else { return Ok(None) };
    let kept = cache.get(place, |part| {
        say(format_args!("taking the prebuilt {}", file.display()));
        unpack(&file, part)
    })?;
    Ok(Some(kept))
}

/// One that fits, still packed.
pub(super) fn find(name: &str, source: &[u8]) -> Option<PathBuf> {
    let directory = match std::env::var_os("CASEMATE_LAB_PREBUILT") {
        Some(given) => PathBuf::from(given),
        None => repository::beside("shared")?.join("lab/prebuilt"),
    };
    let record = fs::read_to_string(directory.join(BUILD_INFO)).ok()?;
    let file = directory.join(name);
    let fits =
        records(&record, &hash(source), None) && records(&record, &sha256(&file).ok()?, Some(name));
    fits.then_some(file)
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
}
