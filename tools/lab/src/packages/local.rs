//! Files that are here already, recognised by their hash.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};

/// The SHA-256 of a file, 64 lowercase hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut Write(&mut hasher))?;
    let mut text = String::new();
    for byte in hasher.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// A hasher that bytes can be copied to.
struct Write<'a>(&'a mut Sha256);

impl io::Write for Write<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file of this hash in the directory `CASEMATE_BLOBS`.
pub(super) fn find(sha256: &str) -> Option<PathBuf> {
    static FILES: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let directory = std::env::var_os("CASEMATE_BLOBS");
        directory.map(|given| list(Path::new(&given)).into_iter().collect()).unwrap_or_default()
    });
    files.get(sha256).cloned()
}

fn list(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
    // A file that cannot be read is as good as one that is not there.
    files.filter_map(|path| Some((sha256(&path).ok()?, path))).collect()
}
