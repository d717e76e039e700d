//! That what is kept is on the disk, and still what was made: a digest beside each entry of the cache.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::cache::with_suffix;

/// Entries that this process has looked at.
static SEEN: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);

/// Syncs what was made at `part` and writes down what it is, for the time when it is at `target`.
pub(crate) fn set(part: &Path, target: &Path) -> io::Result<()> {
    let file = File::open(part)?;
    if file.metadata()?.is_dir() {
        // Thousands of files, with one call.
        rustix::fs::syncfs(&file)?;
    } else {
        file.sync_all()?;
    }
    record(target, &contents(part)?, &looks(part)?)
}

/// Whether what is at `target` is what was made. Its contents are read only when its looks (names, sizes,
/// times) have changed, and nothing is looked at twice.
pub(crate) fn holds(target: &Path) -> bool {
    let seen = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen().contains(target) && target.exists() {
        return true;
    }
    let holds = check(target).unwrap_or(false);
    if holds {
        seen().insert(target.into());
    }
    holds
}

fn check(target: &Path) -> io::Result<bool> {
    let record_text = fs::read_to_string(path(target))?;
    let Some((contents_then, looks_then)) = record_text.trim().split_once(' ') else {
        return Ok(false);
    };
    let looks_now = looks(target)?;
    if looks_now == looks_then {
        return Ok(true);
    }
    let same = contents(target)? == contents_then;
    if same {
        // A cache that cannot be written is good to read.
        let _ = record(target, contents_then, &looks_now);
    }
    Ok(same)
}

/// For tests: as another process would.
#[cfg(test)]
pub(crate) fn forget() {
    SEEN.lock().unwrap().clear();
}

/// Makes a name durable.
pub(crate) fn sync_parent(target: &Path) -> io::Result<()> {
    target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn path(target: &Path) -> PathBuf {
    with_suffix(target, ".seal")
}

fn record(target: &Path, contents: &str, looks: &str) -> io::Result<()> {
    let part = with_suffix(target, ".seal.part");
    fs::write(&part, format!("{contents} {looks}\n"))?;
    File::open(&part)?.sync_all()?;
    fs::rename(part, path(target))
}

/// The SHA-256 of names, kinds, and what the files hold.
fn contents(root: &Path) -> io::Result<String> {
    digest(root, |path, metadata, hasher| {
        if metadata.is_file() {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; 1 << 16];
            loop {
                let count = io::Read::read(&mut file, &mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                hasher.update(buffer.get(..count).unwrap_or_default());
            }
        }
        Ok(())
    })
}

/// The SHA-256 of names, kinds, sizes and times.
fn looks(root: &Path) -> io::Result<String> {
    digest(root, |_, metadata, hasher| {
        if metadata.is_file() {
            hasher.update(metadata.mtime().to_le_bytes());
            hasher.update(metadata.mtime_nsec().to_le_bytes());
        }
        Ok(())
    })
}

fn digest(
    root: &Path,
    mut add: impl FnMut(&Path, &fs::Metadata, &mut Sha256) -> io::Result<()>,
) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_encoded_bytes();
        let link = if metadata.is_symlink() { fs::read_link(&path)? } else { PathBuf::new() };
        let length = if metadata.is_file() { metadata.len() } else { 0 };
        for field in [
            &u64::try_from(name.len()).unwrap_or_default().to_le_bytes()[..],
            name,
            &metadata.mode().to_le_bytes(),
            &length.to_le_bytes(),
            link.as_os_str().as_encoded_bytes(),
        ] {
            hasher.update(field);
        }
        add(&path, &metadata, &mut hasher)?;
        if metadata.is_dir() {
            let entries = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
            let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
            paths.sort();
            rest.extend(paths);
        }
    }
    Ok(hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
