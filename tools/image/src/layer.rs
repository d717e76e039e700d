//! Layers: decompressed within limits, hashed, and applied to a tree.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};

use crate::Limits;
use crate::tar::{Member, MemberKind, TarError, TarReader};
use crate::tree::{Attributes, Content, Node, Tree, TreeError, show};

/// Reason to refuse a layer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum LayerError {
    #[error("could not unpack the layer")]
    Unpack(#[source] io::Error),
    #[error("the layer is not a well-formed tar archive")]
    Tar(#[from] TarError),
    #[error("refused the member `{path}`")]
    Member { path: String, source: TreeError },
    #[error("the SHA-256 of the {what} is {actual}, not {expected}; fetch the image again")]
    Digest { what: &'static str, actual: String, expected: String },
}

/// A bound that a layer exceeds. Travels inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
enum Bomb {
    #[error("the uncompressed layer exceeds the limit of {0} bytes")]
    Long(u64),
    #[error("the layer expands to more than {0} times its compressed length")]
    Ratio(u64),
}

/// Uncompressed bytes of a layer. Hashes what passes, compressed and uncompressed.
pub(crate) struct LayerStream<'a> {
    decoder: Box<dyn Read + 'a>,
    compressed: Rc<Passed>,
    hash: Sha256,
    len: u64,
    limits: &'a Limits,
}

/// Compressed bytes that were read.
#[derive(Default)]
struct Passed {
    len: Cell<u64>,
    hash: Cell<Sha256>,
}

struct Compressed<R> {
    input: R,
    passed: Rc<Passed>,
}

impl<R: Read> Read for Compressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.passed.len.set(self.passed.len.get() + read as u64);
        let mut hash = self.passed.hash.take();
        hash.update(&buffer[..read]);
        self.passed.hash.set(hash);
        Ok(read)
    }
}

/// SHA-256 of a layer as it is stored, and uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) stored: [u8; 32],
    pub(crate) uncompressed: [u8; 32],
}

impl<'a> LayerStream<'a> {
    /// `input` is gzip (RFC 1952) or zstd (RFC 8878), recognised by its first bytes, or uncompressed.
    pub(crate) fn new(input: impl Read + 'a, limits: &'a Limits) -> io::Result<Self> {
        let compressed = Rc::new(Passed::default());
        let input = Compressed { input, passed: compressed.clone() };
        let mut input = BufReader::with_capacity(128 << 10, input);
        let decoder: Box<dyn Read> = match input.fill_buf()? {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(input)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Box::new(Zstd { decoder: FrameDecoder::new(), input, in_frame: false })
            }
            _ => Box::new(input),
        };
        Ok(Self { decoder, compressed, hash: Sha256::new(), len: 0, limits })
    }

    /// Reads what is left and returns the digests.
    pub(crate) fn finish(mut self) -> io::Result<Digests> {
        io::copy(&mut self, &mut io::sink())?;
        let stored = self.compressed.hash.take().finalize().into();
        Ok(Digests { stored, uncompressed: self.hash.finalize().into() })
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        self.len += read as u64;
        let Limits { layer_bytes, expansion, .. } = *self.limits;
        if self.len > layer_bytes {
            return Err(io::Error::other(Bomb::Long(layer_bytes)));
        }
        let most = self.compressed.len.get().saturating_mul(expansion);
        if self.len > Limits::RATIO_FROM && self.len > most {
            return Err(io::Error::other(Bomb::Ratio(expansion)));
        }
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// All frames of a zstd stream; skippable ones (RFC 8878, section 3.1.2) are skipped.
struct Zstd<R> {
    decoder: FrameDecoder,
    input: R,
    in_frame: bool,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                if self.input.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.decoder.init(&mut self.input) {
                    Ok(()) => self.in_frame = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(
                        ReadFrameHeaderError::SkipFrame { length, .. },
                    )) => {
                        let mut frame = (&mut self.input).take(length.into());
                        if io::copy(&mut frame, &mut io::sink())? < length.into() {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        continue;
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.input, one).map_err(io::Error::other)?;
            }
            if self.decoder.can_collect() > 0 || buffer.is_empty() {
                return self.decoder.read(buffer);
            }
            self.in_frame = false;
        }
    }
}

/// Applies the members of an uncompressed layer, the `layer`-th from 1, to a tree.
///
/// # Errors
///
/// If the archive or one of its members is refused. The tree is of no use then.
pub fn apply(tree: &mut Tree, layer: u32, archive: impl Read) -> Result<(), LayerError> {
    let mut reader = TarReader::new(archive);
    while let Some(member) = reader.next_member()? {
        let path = show(&member.path);
        add(tree, layer, member).map_err(|source| LayerError::Member { path, source })?;
    }
    Ok(())
}

fn add(tree: &mut Tree, layer: u32, member: Member) -> Result<(), TreeError> {
    let Member { path, kind, mode, uid, gid, mtime, xattrs, size, offset } = member;
    let node = match kind {
        // All names of a file share one inode, which has the attributes of the first.
        MemberKind::HardLink(target) => return tree.link(layer, &path, &target),
        MemberKind::Regular => Node::Regular { size, content: Content::Layer { layer, offset } },
        MemberKind::Symlink(target) => Node::Symlink(target.into()),
        MemberKind::Character(device) => Node::Character(device),
        MemberKind::Block(device) => Node::Block(device),
        MemberKind::Directory => Node::Directory,
        MemberKind::Fifo => Node::Fifo,
    };
    // The tree has the low 12 bits only.
    let mode = u16::try_from(mode & 0o7777).unwrap_or_default();
    tree.insert(layer, &path, Attributes { mode, uid, gid, mtime, xattrs }, node)
}
