//! From a source to an image file.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::erofs::{BLOCK, Layout, LayoutError, Piece, write_metadata};
use crate::source::{ImageInfo, Selection, Source, SourceError};
use crate::tree::{Content, InodeId, Node, Tree};
use crate::verity::{self, Verity, VerityError};

/// Reason why an image was not built. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum BuildError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("could not write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("could not read `{path}` of the source")]
    ReadFile { path: String, source: io::Error },
    #[error("could not append the hash tree")]
    Verity(#[source] VerityError),
}

/// Step of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Layers are read and checked; bytes are those of stored layers.
    Read,
    /// File contents are written; bytes are those of files.
    Write,
    /// The hash tree is computed; bytes are those of the image.
    Hash,
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// Identity of the source.
    pub info: ImageInfo,
    /// Root hash and length of the data.
    pub verity: Verity,
    /// Number of inodes.
    pub inodes: u64,
}

/// Builds an image at `output`, which is replaced in one step once the new image is complete.
///
/// The bytes depend on the files of the source alone: paths, contents, owners, modes, whole seconds of their
/// times, and extended attributes. `progress` gets a step and the bytes since its last call.
///
/// # Errors
///
/// If the source is refused or cannot be read, or the image cannot be written.
pub fn build(
    source: &Path,
    output: &Path,
    selection: &Selection,
    progress: &mut dyn FnMut(Stage, u64),
) -> Result<Built, BuildError> {
    let source = Source::open(source, selection)?;
    let tree = source.tree(progress)?;
    let layout = Layout::new(&tree)?;
    let write = |source| BuildError::Write { path: output.into(), source };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Removed when it is dropped, unless it was given its name.
    let mut file = tempfile::Builder::new()
        .prefix(".casemate-image-")
        .permissions(readable())
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(write)?;
    let inodes = layout.inodes() as u64;
    let verity = write_image(&source, &layout, file.as_file_mut(), progress, &write)?;
    file.persist(output).map_err(|error| write(error.error))?;
    Ok(Built { info: source.info().clone(), verity, inodes })
}

/// Mode of the image: it is not secret, and its bytes are checked wherever it is used.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

fn write_image(
    source: &Source,
    layout: &Layout<'_>,
    file: &mut File,
    progress: &mut dyn FnMut(Stage, u64),
    failed: &dyn Fn(io::Error) -> BuildError,
) -> Result<Verity, BuildError> {
    let blocks = u64::from(layout.blocks());
    // Gaps are zeros from here on.
    file.set_len(blocks * BLOCK).map_err(failed)?;
    write_metadata(layout, &mut *file).map_err(failed)?;
    let mut writer = Contents { layout, file, failed, progress, at: None };
    writer.layers(source)?;
    writer.directory(source)?;
    verity::append(file, blocks, &mut |bytes| progress(Stage::Hash, bytes))
        .map_err(BuildError::Verity)
}

/// Writes contents of regular files.
struct Contents<'a, 't> {
    layout: &'a Layout<'t>,
    file: &'a mut File,
    failed: &'a dyn Fn(io::Error) -> BuildError,
    progress: &'a mut dyn FnMut(Stage, u64),
    /// The file that is written, and its places that are left.
    at: Option<(InodeId, Vec<Piece>)>,
}

impl Contents<'_, '_> {
    fn layers(&mut self, source: &Source) -> Result<(), BuildError> {
        let mut wanted: Vec<Vec<(u64, u64, InodeId)>> = Vec::new();
        let tree = self.layout.tree();
        for &id in self.layout.order() {
            if let Node::Regular { size, content: Content::Layer { layer, offset } } =
                tree.inode(id).node
            {
                wanted.resize(wanted.len().max(layer as usize + 1), Vec::new());
                wanted[layer as usize].push((offset, size, id));
            }
        }
        for (layer, mut wanted) in (0..).zip(wanted) {
            wanted.retain(|&(_, size, _)| size > 0);
            wanted.sort_unstable_by_key(|&(offset, ..)| offset);
            if !wanted.is_empty() {
                source.read_layer(layer, &wanted, |id, bytes| self.write(id, bytes))?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, source: &Source) -> Result<(), BuildError> {
        let tree: &Tree = self.layout.tree();
        let mut done = vec![false; tree.len()];
        let mut buffer = vec![0; 1 << 20];
        tree.walk(|path, id| {
            let Node::Regular { size, content: Content::Directory } = tree.inode(id).node else {
                return Ok(());
            };
            if std::mem::replace(&mut done[id.index()], true) || size == 0 {
                return Ok(());
            }
            let Some(mut input) = source.open_file(path, size)? else { return Ok(()) };
            let mut left = size;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let read = match input.read(&mut buffer[..most]) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    other => other,
                };
                let path = || crate::tree::show(path);
                let read = read.map_err(|source| BuildError::ReadFile { path: path(), source })?;
                self.write(id, &buffer[..read])?;
                left -= read as u64;
            }
            Ok(())
        })
    }

    /// Writes the next bytes of a file, all of which come before those of another.
    fn write(&mut self, id: InodeId, mut bytes: &[u8]) -> Result<(), BuildError> {
        (self.progress)(Stage::Write, bytes.len() as u64);
        if self.at.as_ref().is_none_or(|&(current, _)| current != id) {
            self.at = Some((id, self.layout.pieces(id).collect()));
        }
        let Some((_, pieces)) = &mut self.at else { return Ok(()) };
        while let (Some(piece), false) = (pieces.first_mut(), bytes.is_empty()) {
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            let written = self.file.seek(SeekFrom::Start(piece.offset));
            written.and_then(|_| self.file.write_all(now)).map_err(self.failed)?;
            piece.offset += len as u64;
            piece.len -= len as u64;
            bytes = later;
            if piece.len == 0 {
                pieces.remove(0);
            }
        }
        Ok(())
    }
}
