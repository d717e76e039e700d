//! What is fetched or built once and then kept: made by one process at a time, whole or not at all, and
//! still the same whenever it is taken.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::progress::say;
use crate::seal;

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
    /// Others could put files there that would run as this user.
    #[error(
        "{} cannot be used for downloads: {reason}; correct that, or set CASEMATE_CACHE to a directory \
         of your own", path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Whose it is, or who else can write.
        reason: String,
    },
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
    /// The directory cannot be created, or others can write to it.
    pub fn at(root: &Path) -> Result<Self, CacheError> {
        let mut create = fs::DirBuilder::new();
        create.recursive(true).mode(0o700);
        create.create(root).map_err(CacheError::io("creating", root))?;
        let metadata = fs::metadata(root).map_err(CacheError::io("reading", root))?;
        let user = rustix::process::geteuid().as_raw();
        if let Some(reason) = foreign(metadata.uid(), metadata.mode(), user) {
            return Err(CacheError::NotOurs { path: root.into(), reason });
        }
        // Absolute, because tools run in other directories.
        let root = root.canonicalize().map_err(CacheError::io("resolving", root))?;
        Ok(Self { root })
    }

    /// A path below the cache's directory.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The file or directory at `relative`, made by `make` when it is not there yet, or is not what was
    /// made.
    ///
    /// `make` gets the path at which to create it; only when it succeeds, and all of it is on the disk,
    /// does the result move to its name. Callers in other threads and processes that want the same wait;
    /// callers that want something else do not.
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
        if seal::holds(&target) {
            return Ok(target);
        }
        let _lock = self.lock(&target)?;
        if seal::holds(&target) {
            return Ok(target);
        }
        if target.exists() {
            say(format_args!("{} has changed since it was kept: making it anew", target.display()));
        }
        let part = with_suffix(&target, ".part");
        remove(&part)?;
        make(&part)?;
        seal::set(&part, &target).map_err(CacheError::io("writing", &part))?;
        remove(&target)?;
        fs::rename(&part, &target).map_err(CacheError::io("naming", &target))?;
        seal::sync_parent(&target).map_err(CacheError::io("writing", &target))?;
        Ok(target)
    }

    /// What is at `relative`, when it is there and what was made.
    pub fn kept(&self, relative: impl AsRef<Path>) -> Option<PathBuf> {
        Some(self.path(relative)).filter(|path| seal::holds(path))
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

/// Who else could write to a directory, in words.
fn foreign(owner: u32, mode: u32, user: u32) -> Option<String> {
    if owner != user {
        Some(format!("it belongs to user {owner}, and this is user {user}"))
    } else if mode & 0o022 != 0 {
        Some(format!("its mode {:o} lets others write to it", mode & 0o7777))
    } else {
        None
    }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes what an interrupted attempt left.
fn remove(path: &Path) -> Result<(), CacheError> {
    let directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
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

    #[test]
    fn changed_entries_are_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let tree = |text: &str| {
            cache.get("tree", |part| {
                fs::create_dir(part).map_err(CacheError::io("creating", part))?;
                let file = part.join("file");
                fs::write(&file, text).map_err(CacheError::io("writing", file))
            })
        };
        let path = tree("whole").unwrap().join("file");
        assert_eq!(fs::read_to_string(tree("again").unwrap().join("file")).unwrap(), "whole");
        let record = directory.path().join("tree.seal");
        for change in [
            &|| fs::write(&path, "whol").unwrap() as _,
            &|| fs::write(path.with_file_name("more"), "").unwrap(),
            &|| fs::remove_file(&path).unwrap(),
            &|| fs::remove_file(&record).unwrap(),
        ] as [&dyn Fn(); 4]
        {
            change();
            seal::forget();
            assert!(cache.kept("tree").is_none());
            assert_eq!(fs::read_to_string(tree("whole").unwrap().join("file")).unwrap(), "whole");
        }
        // A copy of a cache has the same contents with other times.
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        seal::forget();
        assert!(cache.kept("tree").is_some());
    }

    #[test]
    fn directories_of_others_are_refused() {
        assert_eq!(foreign(7, 0o755, 7), None);
        assert!(foreign(8, 0o700, 7).unwrap().contains("user 8"));
        assert!(foreign(7, 0o1777, 7).unwrap().contains("1777"));
        let directory = tempfile::tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(directory.path(), mode).unwrap();
        let error = Cache::at(directory.path()).unwrap_err();
        assert!(error.to_string().contains("mode 777"), "{error}");
    }
}
