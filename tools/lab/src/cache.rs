//! What is fetched or built once and then kept: made by one process at a time, whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The directory that holds everything the lab fetches and builds: `$CASEMATE_CACHE`, else
/// `$XDG_CACHE_HOME/casemate`, else `~/.cache/casemate`.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A cache that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No variable says where the cache is.
    #[error("no place for downloads: none of CASEMATE_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoPlace,
    /// The file system refused.
    #[error("{what} {} failed", path.display())]
    Io {
        /// What was attempted, as a gerund: "creating".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl CacheError {
    /// Turns an [`io::Error`] into one that says what was attempted on which file.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

impl Cache {
    /// The cache of this user, created when it is not there.
    ///
    /// # Errors
    ///
    /// No place for it, or the place cannot be written.
    pub fn open() -> Result<Self, CacheError> {
        let set =
            |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("CASEMATE_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("casemate")))
            .or_else(|| Some(set("HOME")?.join(".cache/casemate")))
            .ok_or(CacheError::NoPlace)?;
        Self::at(&root)
    }

    /// A cache in a given directory, created when it is not there.
    ///
    /// # Errors
    ///
    /// The directory cannot be created.
    pub fn at(root: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(root).map_err(CacheError::io("creating", root))?;
        // Absolute, because tools run in other directories.
        let root = root.canonicalize().map_err(CacheError::io("resolving", root))?;
        Ok(Self { root })
    }

    /// A path below the cache's directory.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The file or directory at `relative`, made by `make` when it is not there yet.
    ///
    /// `make` gets the path at which to create it; only when it succeeds does the result move to its
    /// name. Callers in other threads and processes that want the same wait; callers that want
    /// something else do not.
    ///
    /// # Errors
    ///
    /// What `make` returned, or the file system refused.
    pub fn get<E: From<CacheError>>(
        &self,
        relative: impl AsRef<Path>,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let target = self.path(relative);
        if target.exists() {
            return Ok(target);
        }
        let _lock = self.lock(&target)?;
        if target.exists() {
            return Ok(target);
        }
        let part = with_suffix(&target, ".part");
        remove(&part)?;
        make(&part)?;
        fs::rename(&part, &target).map_err(CacheError::io("naming", &target))?;
        Ok(target)
    }

    /// Waits until this caller is the only one who works on `target`, as long as the lock lives.
    ///
    /// # Errors
    ///
    /// The lock file cannot be created.
    pub fn lock(&self, target: &Path) -> Result<File, CacheError> {
        let path = with_suffix(target, ".lock");
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(CacheError::io("creating", parent))?;
        let file = File::create(&path).map_err(CacheError::io("creating", &path))?;
        file.lock().map_err(CacheError::io("locking", &path))?;
        Ok(file)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes what an interrupted attempt left.
fn remove(path: &Path) -> Result<(), CacheError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CacheError::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn many_callers_make_a_thing_once() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let path = cache.get("a/thing", |part| {
                        made.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                        fs::write(part, "whole").map_err(CacheError::io("writing", part))
                    });
                    assert_eq!(fs::read_to_string(path.unwrap()).unwrap(), "whole");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn what_an_attempt_left_is_never_taken_for_the_thing() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let failed = cache.get("thing", |part| {
            fs::write(part, "ha").map_err(CacheError::io("writing", part))?;
            Err(CacheError::NoPlace)
        });
        assert!(failed.is_err() && !cache.path("thing").exists());
        let path = cache
            .get("thing", |part| {
                assert!(!part.exists(), "the rest of the first attempt is gone");
                fs::write(part, "whole").map_err(CacheError::io("writing", part))
            })
            .unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "whole");
    }
}
