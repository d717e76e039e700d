//! An image file on its own: its file system and its hash tree.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::erofs::{Image, ReadError};
use crate::verity::{self, Verity, VerityError};

/// Reason to refuse an image file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum CheckError {
    #[error("could not open {}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("the file is not an image that `casemate image build` wrote")]
    FileSystem(#[source] ReadError),
    #[error("the image does not match its hash tree")]
    Verity(#[source] VerityError),
}

/// An image file, as its superblocks describe it.
#[derive(Debug)]
pub struct ImageFile<R> {
    input: R,
    verity: Verity,
    inodes: u64,
}

impl ImageFile<File> {
    /// Opens an image file and reads both superblocks.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is not an image of [`build`](crate::build).
    pub fn open(path: &Path) -> Result<Self, CheckError> {
        let file = File::open(path);
        let file = file.map_err(|source| CheckError::Open { path: path.into(), source })?;
        Self::read(file)
    }
}

impl<R: Read + Seek> ImageFile<R> {
    /// Reads both superblocks.
    ///
    /// # Errors
    ///
    /// As for [`open`](ImageFile::open).
    pub fn read(mut input: R) -> Result<Self, CheckError> {
        let image = Image::open(&mut input).map_err(CheckError::FileSystem)?;
        let (blocks, inodes) = (image.blocks(), image.inodes());
        let offset = u64::from(blocks) * crate::erofs::BLOCK;
        let verity = verity::read(&mut input, offset).map_err(CheckError::Verity)?;
        Ok(Self { input, verity, inodes })
    }

    /// Length of the data, and the root hash that the tree in the file has. The data are not read.
    pub fn verity(&self) -> &Verity {
        &self.verity
    }

    /// Number of inodes.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Compares all blocks with the hash tree, and its root with `root_hash`. `progress` gets the bytes that
    /// were hashed since its last call.
    ///
    /// # Errors
    ///
    /// The first difference.
    pub fn verify(
        &mut self,
        root_hash: &[u8; 32],
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), CheckError> {
        let expected = Verity { root_hash: *root_hash, ..self.verity };
        verity::verify(&mut self.input, &expected, progress).map_err(CheckError::Verity)
    }
}
