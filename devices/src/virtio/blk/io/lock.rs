//! One writer, or any number of readers, for an image: a lock that other processes respect (flock).

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use super::ImageError;

/// Takes the lock, which goes with the last descriptor of the open file.
///
/// # Errors
/// If somebody else has it. A file system without locks is no error.
pub(super) fn lock(file: &File, read_only: bool) -> Result<(), ImageError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(ImageError::InUse(Owner(owner(file)))),
        Err(TryLockError::Error(error)) if has_no_locks(&error) => {
            tracing::info!(%error, "the file system has no locks: two guests can write one image");
            Ok(())
        }
        Err(TryLockError::Error(error)) => Err(ImageError::Inspect(error)),
    }
}

/// Who has a lock.
#[derive(Debug)]
pub struct Owner(Option<u32>);

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(process) if process == std::process::id() => f.write_str("this process"),
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("another process"),
        }
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// The process that has a lock on `file`, if the kernel tells.
fn owner(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| owner_in(line, &wanted))
}

/// The process of a line like `1: FLOCK  ADVISORY  WRITE 708 00:13:4321 0 EOF`.
fn owner_in(line: &str, file: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace();
    if words.nth(1)? != "FLOCK" {
        return None;
    }
    let process = words.nth(2)?.parse().ok()?;
    (words.next()? == file).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [first, second] = [(); 2].map(|()| file.reopen().unwrap());
        lock(&first, true).unwrap();
        lock(&second, true).unwrap();
        let error = lock(&file.reopen().unwrap(), false).unwrap_err().to_string();
        assert!(error.starts_with("the image is in use by this process"), "{error}");
        drop((first, second));
        let writer = file.reopen().unwrap();
        lock(&writer, false).unwrap();
        assert!(lock(&file.reopen().unwrap(), true).is_err());
        drop(writer);
        lock(&file.reopen().unwrap(), true).unwrap();
    }

    #[test]
    fn owner_is_that_of_the_same_file() {
        let line = "3: FLOCK  ADVISORY  WRITE 708 fe:01:4321 0 EOF";
        assert_eq!(owner_in(line, "fe:01:4321"), Some(708));
        assert_eq!(owner_in(line, "fe:01:432"), None);
        assert_eq!(owner_in("3: POSIX  ADVISORY  WRITE 708 fe:01:4321 0 EOF", "fe:01:4321"), None);
        assert_eq!(owner_in("3: -> FLOCK  ADVISORY  WRITE 9 fe:01:4321 0 EOF", "fe:01:4321"), None);
    }
}
