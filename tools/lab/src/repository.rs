//! Where the source tree is, when this program runs out of it.

use std::env;
use std::path::{Path, PathBuf};

/// A directory beside the repository's. `None` for a program that was installed and is used
/// elsewhere, or where there is no such directory.
pub(crate) fn beside(name: &str) -> Option<PathBuf> {
    // target/debug/casemate is in the repository; a build directory may be elsewhere, but tests run
    // in their package's directory.
    let starts = [env::current_exe().ok(), env::current_dir().ok()];
    let repository = starts.iter().flatten().find_map(|start| above(start))?;
    Some(repository.parent()?.join(name)).filter(|path| path.is_dir())
}

fn above(start: &Path) -> Option<&Path> {
    start.ancestors().find(|path| path.join("tools/lab/Cargo.toml").is_file())
}
