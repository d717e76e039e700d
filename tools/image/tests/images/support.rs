//! Builds images, and lists what is in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use casemate_image::erofs::{FileKind, Image};
use casemate_image::tree::Xattr;
use casemate_image::{BuildError, Built, Limits, Selection, build};
use tempfile::TempDir;

use crate::archive::{Layer, digits, oci_archive};

/// A folder for one test, with the source in a folder of its own.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("output")).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.path("output/image")
    }

    /// Names of what a build left.
    pub(crate) fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("output")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) fn build(&self, source: &Path) -> Result<Built, BuildError> {
        self.build_with(source, &Selection::default())
    }

    pub(crate) fn build_with(
        &self,
        source: &Path,
        selection: &Selection,
    ) -> Result<Built, BuildError> {
        build(source, &self.output(), selection, &mut |_, _| {})
    }

    /// Builds an image of uncompressed layers.
    pub(crate) fn build_layers(&self, layers: Vec<Vec<u8>>) -> Result<Built, BuildError> {
        let layers: Vec<_> = layers.into_iter().map(Layer::plain).collect();
        fs::write(self.path("image.tar"), oci_archive(&layers)).unwrap();
        self.build(&self.path("image.tar"))
    }
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) kind: FileKind,
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: u64,
    pub(crate) links: u32,
    pub(crate) xattrs: Vec<Xattr>,
    /// SHA-256 of a regular file.
    pub(crate) content: Option<String>,
}

/// All files of an image, by path.
pub(crate) fn list(image: &Path) -> BTreeMap<String, Listed> {
    let mut image = Image::open(File::open(image).unwrap()).unwrap();
    let mut listed = BTreeMap::new();
    image
        .walk(&Limits::default(), |image, path, inode| {
            let mut content = None;
            if inode.kind == FileKind::Regular {
                let mut bytes = Vec::new();
                image.copy(inode, &mut bytes)?;
                content = Some(digits(&bytes));
            }
            let listing = Listed {
                kind: inode.kind.clone(),
                mode: inode.mode,
                owner: (inode.uid, inode.gid),
                mtime: inode.mtime,
                links: inode.links,
                xattrs: inode.xattrs.clone(),
                content,
            };
            listed.insert(path.escape_ascii().to_string(), listing);
            Ok(())
        })
        .unwrap();
    listed
}

/// Paths of an image of layers, without the root.
pub(crate) fn paths(layers: Vec<Vec<u8>>) -> Vec<String> {
    let folder = Folder::new();
    folder.build_layers(layers).unwrap();
    list(&folder.output()).into_keys().filter(|path| !path.is_empty()).collect()
}

/// The whole message of an error.
pub(crate) fn message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message += &format!(": {cause}");
        source = cause.source();
    }
    message
}
