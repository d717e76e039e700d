//! What the emulator and the TDX host's kernel are made of: files that are installed beside the program, and
//! are no part of it. The patches are GPL-2.0.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{EmulatorError, build, short_hash};
use crate::cache::CacheError;

/// The devices that QEMU is built with.
pub(super) const DEVICES: &str = "devices.mak";
/// Kernel options of the TDX host; all others are off.
pub(super) const KERNEL_CONFIG: &str = "tdx-host-kernel.config";

/// The files, read.
pub(crate) struct Recipe {
    pub(super) directory: PathBuf,
    /// Names in the order in which they apply, and contents.
    pub(super) patches: Vec<(String, Vec<u8>)>,
    pub(super) devices: Vec<u8>,
    pub(super) kernel_config: Vec<u8>,
}

impl Recipe {
    /// From `CASEMATE_SHARE`, where this program is installed, or the repository that it was built in.
    pub(crate) fn open() -> Result<Self, EmulatorError> {
        let program = env::current_exe().unwrap_or_default();
        let given = env::var_os("CASEMATE_SHARE").filter(|given| !given.is_empty());
        Self::within(&directory(given.map(PathBuf::from), &program)?)
    }

    fn within(directory: &Path) -> Result<Self, EmulatorError> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(CacheError::io("reading", path))
        };
        let entries = fs::read_dir(directory).map_err(CacheError::io("reading", directory))?;
        let mut names: Vec<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| name.ends_with(".patch"));
        names.sort();
        let patches = names.into_iter().map(|name| Ok((name.clone(), read(&name)?)));
        Ok(Self {
            directory: directory.into(),
            patches: patches.collect::<Result<_, CacheError>>()?,
            devices: read(DEVICES)?,
            kernel_config: read(KERNEL_CONFIG)?,
        })
    }

    /// All patches, one after the other.
    pub(super) fn patch(&self) -> Vec<u8> {
        self.patches.iter().flat_map(|(_, bytes)| bytes).copied().collect()
    }

    /// Of everything that makes the emulator what it is.
    pub(super) fn emulator_id(&self) -> String {
        let options = build::CONFIGURE.join(" ");
        short_hash(&[&self.patch(), &self.devices[..], options.as_bytes()].concat())
    }

    pub(super) fn kernel_id(&self) -> String {
        short_hash(&self.kernel_config)
    }
}

fn directory(given: Option<PathBuf>, program: &Path) -> Result<PathBuf, EmulatorError> {
    let whole = |path: &PathBuf| path.join(KERNEL_CONFIG).is_file();
    if let Some(given) = given {
        let found = [given.join("lab"), given.clone()].into_iter().find(whole);
        return found.ok_or(EmulatorError::NoRecipe { tried: given.display().to_string() });
    }
    // PREFIX/bin/casemate
    let prefix = program.parent().and_then(Path::parent);
    let installed = prefix.map(|prefix| prefix.join("share/casemate/lab"));
    // REPOSITORY/target/debug/casemate, REPOSITORY/target/debug/deps/test-0123
    let target = program.ancestors().find(|path| path.file_name() == Some("target".as_ref()));
    let repository = target.and_then(Path::parent).filter(|path| is_ours(path, program));
    let own = repository.map(|repository| repository.join("tools/lab/qemu"));
    let tried: Vec<_> = [installed, own].into_iter().flatten().collect();
    let names: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
    let found = tried.into_iter().find(whole);
    found.ok_or_else(|| EmulatorError::NoRecipe { tried: names.join(" and ") })
}

/// Whether a directory belongs to who made the program.
fn is_ours(directory: &Path, program: &Path) -> bool {
    let owner = |path: &Path| fs::metadata(path).map(|metadata| metadata.uid());
    matches!((owner(directory), owner(program)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(directory: &Path, files: &[&str]) {
        for file in files {
            let file = directory.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
    }

    #[test]
    fn files_are_those_of_the_variable_the_prefix_or_the_repository() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(
            root,
            &["bin/casemate", "given/lab/tdx-host-kernel.config", "other/tdx-host-kernel.config"],
        );
        put(root, &["tree/target/debug/casemate"]);
        let (installed, built) =
            (root.join("bin/casemate"), root.join("tree/target/debug/casemate"));
        let nothing = directory(None, &installed).unwrap_err().to_string();
        assert!(nothing.contains(&format!("{}/share/casemate/lab", root.display())), "{nothing}");
        put(root, &["share/casemate/lab/tdx-host-kernel.config"]);
        assert_eq!(directory(None, &installed).unwrap(), root.join("share/casemate/lab"));
        assert!(directory(None, &built).is_err());
        put(root, &["tree/tools/lab/qemu/tdx-host-kernel.config"]);
        assert_eq!(directory(None, &built).unwrap(), root.join("tree/tools/lab/qemu"));
        // A variable holds, right or wrong.
        for given in ["given", "given/lab", "other"] {
            let found = directory(Some(root.join(given)), &installed).unwrap();
            assert!(found.starts_with(root.join(given)), "{found:?}");
        }
        let wrong = directory(Some(root.join("bin")), &built).unwrap_err();
        assert!(wrong.to_string().contains("CASEMATE_SHARE"), "{wrong}");
    }

    /// As somebody might put one where people call the program.
    #[test]
    fn a_repository_around_the_current_directory_is_none() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), &["tools/lab/qemu/tdx-host-kernel.config", "bin/casemate"]);
        assert!(directory(None, &root.path().join("bin/casemate")).is_err());
    }

    #[test]
    fn patches_apply_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), &[DEVICES, KERNEL_CONFIG]);
        fs::write(root.path().join("2.patch"), "two").unwrap();
        fs::write(root.path().join("1.patch"), "one").unwrap();
        let recipe = Recipe::within(root.path()).unwrap();
        assert_eq!(recipe.patch(), b"onetwo");
        let id = recipe.emulator_id();
        fs::write(root.path().join(DEVICES), "CONFIG_MORE=y").unwrap();
        assert_ne!(Recipe::within(root.path()).unwrap().emulator_id(), id);
    }
}
