//! Sources of images: an OCI layout, an archive of one, an archive of `docker save`, or a directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

mod archive;
mod directory;
mod docker;
mod oci;
mod store;

pub use archive::read_index;
pub use directory::DirectoryError;
pub use oci::{ConfigDigests, parse_config, parse_docker_manifest, parse_index, parse_manifest};

use crate::layer::{Digests, LayerError, LayerStream, apply};
use crate::tar::TarError;
use crate::tree::{Tree, show};
use crate::verity::hex;
use crate::{Limits, Stage};
use directory::Directory;
use store::Store;

/// Most layers of an image; overlay file systems allow 500 at most.
const MAX_LAYERS: usize = 1000;

/// Reason to refuse a source.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum SourceError {
    #[error("could not read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not an OCI layout, an archive of one, an archive of `docker save`, or a directory", path.display())]
    Unknown { path: PathBuf },
    #[error("{} is compressed; uncompress it first (gunzip, unzstd)", path.display())]
    Compressed { path: PathBuf },
    #[error("the archive {} is refused", path.display())]
    Archive { path: PathBuf, source: TarError },
    #[error("the archive {} is refused: {problem} `{name}`", path.display())]
    ArchiveName { path: PathBuf, name: String, problem: &'static str },
    #[error("the image does not contain the file `{name}`")]
    Missing { name: String },
    #[error("`{name}` is malformed: {problem}")]
    Json { name: String, problem: String },
    #[error("`{name}` has the SHA-256 {actual}, not {expected}; fetch the image again")]
    Digest { name: String, actual: String, expected: String },
    #[error("`{name}` has {actual} bytes, not {expected}")]
    Size { name: String, actual: u64, expected: u64 },
    #[error(
        "the digest `{digest}` is unsupported: expected sha256: and 64 lower-case hexadecimal digits"
    )]
    DigestSyntax { digest: String },
    #[error("`{media_type}` is not a supported media type of {what}")]
    MediaType { media_type: String, what: &'static str },
    #[error("no image matches {wanted}; the source contains: {found}")]
    NoImage { wanted: String, found: String },
    #[error("several images match {wanted}: {found}; name one with --reference or --platform")]
    SeveralImages { wanted: String, found: String },
    #[error("the image has {layers} layers, but its configuration lists {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("layer {number} is refused")]
    Layer { number: usize, source: LayerError },
    #[error("the directory is refused")]
    Directory(#[source] DirectoryError),
    #[error("`{path}` is refused")]
    Tree { path: String, source: crate::tree::TreeError },
}

/// Choice of an image where a source contains several, and of what is accepted in it.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Name, tag or digest of the image, as the source lists it.
    pub reference: Option<String>,
    /// Operating system and architecture, as in `linux/amd64`.
    pub platform: String,
    /// Gives all files to the user and group 0. Of directories only.
    pub all_root: bool,
    /// Accepts names in one directory that differ only in case.
    pub case_collisions: bool,
    /// Bounds on the source.
    pub limits: Limits,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            reference: None,
            platform: "linux/amd64".to_owned(),
            all_root: false,
            case_collisions: false,
            limits: Limits::default(),
        }
    }
}

/// Kind of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum SourceKind {
    OciLayout,
    OciArchive,
    DockerArchive,
    Directory,
}

/// Layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerInfo {
    /// `sha256:` and the hash of the layer as it is stored; of OCI images only.
    pub digest: Option<String>,
    /// `sha256:` and the hash of the uncompressed layer.
    pub diff_id: String,
    /// Length as it is stored, in bytes.
    pub size: u64,
    #[serde(skip)]
    name: String,
}

/// Identity of an image, from its metadata alone.
#[derive(Debug, Clone, Serialize)]
pub struct ImageInfo {
    /// Kind of the source.
    pub kind: SourceKind,
    /// Digest of the manifest (OCI) or of the configuration (Docker archives, which have no manifest digest).
    /// None for a directory.
    pub digest: Option<String>,
    /// Names and tags that the source gives the image.
    pub names: Vec<String>,
    /// Operating system and architecture.
    pub platform: Option<String>,
    /// Layers, lowest first.
    pub layers: Vec<LayerInfo>,
    /// Section `config` of the image configuration: entry point, environment, user and so on. Not checked.
    pub config: serde_json::Value,
}

/// An image whose metadata were read and checked, and whose layers were not.
#[derive(Debug)]
pub struct Source {
    info: ImageInfo,
    content: Files,
    selection: Selection,
}

#[derive(Debug)]
enum Files {
    Layers(Store),
    Directory(Directory),
}

impl Source {
    /// Opens a source and reads its metadata.
    ///
    /// # Errors
    ///
    /// If the source cannot be read, is refused, or does not contain the selected image.
    pub fn open(path: &Path, selection: &Selection) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read { path: path.into(), source };
        let selection = selection.clone();
        let metadata = path.metadata().map_err(read)?;
        let store = if metadata.is_dir() {
            if !path.join(oci::LAYOUT).is_file() {
                let content = Files::Directory(Directory::open(path, selection.all_root)?);
                let info = ImageInfo {
                    kind: SourceKind::Directory,
                    digest: None,
                    names: Vec::new(),
                    platform: None,
                    layers: Vec::new(),
                    config: serde_json::Value::Null,
                };
                return Ok(Self { info, content, selection });
            }
            Store::Folder(path.into())
        } else {
            Store::archive(path)?
        };
        let mut info = if store.contains(oci::LAYOUT) {
            oci::image(&store, &selection)?
        } else if store.contains(docker::MANIFEST) {
            docker::image(&store, &selection)?
        } else {
            return Err(SourceError::Unknown { path: path.into() });
        };
        if metadata.is_dir() {
            info.kind = SourceKind::OciLayout;
        }
        Ok(Self { info, content: Files::Layers(store), selection })
    }

    /// Identity of the image.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Reads all layers, or the directory, into a tree. `progress` gets the bytes that were read since its
    /// last call.
    ///
    /// # Errors
    ///
    /// If a layer cannot be read, does not have its digest, or is refused.
    pub fn tree(&self, progress: &mut dyn FnMut(Stage, u64)) -> Result<Tree, SourceError> {
        let mut tree = Tree::new(&self.selection.limits);
        match &self.content {
            Files::Directory(directory) => {
                directory.scan(&mut tree).map_err(SourceError::Directory)?;
            }
            Files::Layers(store) => {
                for (layer, number) in self.info.layers.iter().zip(1..) {
                    self.apply_layer(store, layer, number, &mut tree)?;
                    progress(Stage::Read, layer.size);
                }
            }
        }
        tree.check(self.selection.case_collisions)
            .map_err(|(path, source)| SourceError::Tree { path: show(&path), source })?;
        Ok(tree)
    }

    fn apply_layer(
        &self,
        store: &Store,
        layer: &LayerInfo,
        number: u32,
        tree: &mut Tree,
    ) -> Result<(), SourceError> {
        let refuse = |source| SourceError::Layer { number: number as usize, source };
        let input = store.open(&layer.name)?;
        let stream = LayerStream::new(input, &self.selection.limits);
        let mut stream = stream.map_err(|error| refuse(LayerError::Unpack(error)))?;
        apply(tree, number, &mut stream).map_err(refuse)?;
        layer.check(stream).map_err(refuse)
    }

    /// Reads the content of regular files. For each `(offset, size, key)` of `wanted`, `take` gets the key and
    /// all bytes, in pieces; offsets ascend and are those of [`Content::Layer`](crate::tree::Content).
    pub(crate) fn read_layer<K: Copy, E: From<SourceError>>(
        &self,
        number: u32,
        wanted: &[(u64, u64, K)],
        mut take: impl FnMut(K, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = (number as usize).saturating_sub(1);
        let (Files::Layers(store), Some(layer)) = (&self.content, self.info.layers.get(index))
        else {
            return Ok(());
        };
        let refuse = |source| SourceError::Layer { number: number as usize, source };
        let unpack = |error| refuse(LayerError::Unpack(error));
        let input = store.open(&layer.name)?;
        let mut stream = LayerStream::new(input, &self.selection.limits).map_err(unpack)?;
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        for &(offset, size, key) in wanted {
            let gap = offset.saturating_sub(at);
            io::copy(&mut (&mut stream).take(gap), &mut io::sink()).map_err(unpack)?;
            let mut left = size;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let read = stream.read(&mut buffer[..most]).map_err(unpack)?;
                if read == 0 {
                    return Err(unpack(io::ErrorKind::UnexpectedEof.into()).into());
                }
                take(key, &buffer[..read])?;
                left -= read as u64;
            }
            at = offset + size;
        }
        // The source may have changed since the layer was applied; the digest shows it.
        layer.check(stream).map_err(refuse)?;
        Ok(())
    }

    /// Opens the regular file at `path` of a source directory.
    pub(crate) fn open_file(&self, path: &[u8], size: u64) -> Result<Option<File>, SourceError> {
        match &self.content {
            Files::Layers(_) => Ok(None),
            Files::Directory(directory) => {
                directory.open_file(path, size).map(Some).map_err(SourceError::Directory)
            }
        }
    }
}

impl LayerInfo {
    fn check(&self, stream: LayerStream<'_>) -> Result<(), LayerError> {
        let Digests { stored, uncompressed } = stream.finish().map_err(LayerError::Unpack)?;
        let compare = |what, actual: &[u8], expected: &str| {
            let actual = format!("sha256:{}", hex(actual));
            if actual == expected {
                return Ok(());
            }
            Err(LayerError::Digest { what, actual, expected: expected.to_owned() })
        };
        if let Some(digest) = &self.digest {
            compare("stored layer", &stored, digest)?;
        }
        compare("uncompressed layer", &uncompressed, &self.diff_id)
    }
}

/// `sha256:` and the hash of `bytes`.
fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}
