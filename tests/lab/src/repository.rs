//! Where the source tree is, when this program runs out of its own build directory.

use std::path::PathBuf;

/// A directory beside the repository's. `None` for a program that was installed elsewhere, or where
/// there is no such directory.
pub(crate) fn beside(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    // target/debug/casemate, or target/debug/deps/test: the repository is above.
    let repository =
        program.ancestors().find(|path| path.join("tests/lab/Cargo.toml").is_file())?;
    Some(repository.parent()?.join(name)).filter(|path| path.is_dir())
}
