//! Files of an image: in a folder, or in an archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::archive::{Extent, read_index};
use super::{SourceError, digest_of};

/// Longest file of metadata in bytes; registries limit manifests to 4 MiB.
const MAX_METADATA: u64 = 4 << 20;

#[derive(Debug)]
pub(super) enum Store {
    Folder(PathBuf),
    Archive { path: PathBuf, index: BTreeMap<String, Extent> },
}

impl Store {
    /// Reads the names of an archive.
    pub(super) fn archive(path: &Path) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read { path: path.into(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut start = [0; 4];
        let filled = file.read(&mut start).map_err(read)?;
        match &start[..filled] {
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] => {
                return Err(SourceError::Compressed { path: path.into() });
            }
            _ => {}
        }
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let index = read_index(path, BufReader::with_capacity(128 << 10, file))?;
        Ok(Self::Archive { path: path.into(), index })
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(path) => path.join(name).is_file(),
            Self::Archive { index, .. } => index.contains_key(name),
        }
    }

    /// Length of a file in bytes.
    pub(super) fn len(&self, name: &str) -> Result<u64, SourceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let metadata = path.metadata();
                match metadata {
                    Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
                    Ok(_) => Err(SourceError::Missing { name: name.to_owned() }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        Err(SourceError::Missing { name: name.to_owned() })
                    }
                    Err(source) => Err(SourceError::Read { path, source }),
                }
            }
            Self::Archive { index, .. } => {
                let extent = index.get(name);
                extent
                    .map(|extent| extent.size)
                    .ok_or(SourceError::Missing { name: name.to_owned() })
            }
        }
    }

    /// Opens a file. `name` is one that this program made, or one of the archive's index.
    pub(super) fn open(&self, name: &str) -> Result<impl Read + use<>, SourceError> {
        let len = self.len(name)?;
        let (path, start) = match self {
            Self::Folder(folder) => (folder.join(name), 0),
            Self::Archive { path, index } => {
                (path.clone(), index.get(name).map_or(0, |extent| extent.offset))
            }
        };
        let opened = File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            Ok(file.take(len))
        });
        opened.map_err(|source| SourceError::Read { path, source })
    }

    /// Reads a file of metadata.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let actual = self.len(name)?;
        if actual > MAX_METADATA {
            let problem = format!("it has {actual} bytes, more than the limit of {MAX_METADATA}");
            return Err(SourceError::Json { name: name.to_owned(), problem });
        }
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(MAX_METADATA).read_to_end(&mut bytes);
        read.map_err(|source| SourceError::Read { path: name.into(), source })?;
        Ok(bytes)
    }

    /// Reads a file of metadata and compares it with its digest.
    pub(super) fn read_checked(&self, name: &str, expected: &str) -> Result<Vec<u8>, SourceError> {
        let bytes = self.read(name)?;
        let actual = digest_of(&bytes);
        if actual != expected {
            let (name, expected) = (name.to_owned(), expected.to_owned());
            return Err(SourceError::Digest { name, actual, expected });
        }
        Ok(bytes)
    }
}
