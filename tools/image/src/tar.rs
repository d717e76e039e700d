//! Reader of tar archives, strict: what two programs could read in two ways is refused.
//!
//! POSIX.1-2024, pax, "ustar Interchange Format" and "pax Interchange Format"; GNU's long names (`L`, `K`) and
//! base-256 numbers (GNU tar manual, "Basic Tar Format"). Sparse members are refused: the specification of
//! image layers does not know them.

use std::io::{self, Read};

mod number;
mod pax;

use crate::tree::{Device, Xattr};

/// Bytes of a header, and the unit of an archive.
const BLOCK: usize = 512;
/// Longest extended header or long name, in bytes: an extended attribute of 64 KiB, and names.
const MAX_EXTENSION: u64 = 1 << 20;

/// Reason to refuse an archive.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum TarError {
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    #[error("the archive is truncated at byte {offset}")]
    Truncated { offset: u64 },
    #[error("the header at byte {offset} has a wrong checksum")]
    Checksum { offset: u64 },
    #[error("the {field} of the header at byte {offset} is not a number in range")]
    Number { field: &'static str, offset: u64 },
    #[error("the member at byte {offset} has the unsupported type {kind:?}")]
    Type { kind: char, offset: u64 },
    #[error("the member at byte {offset} is sparse; create the archive without --sparse")]
    Sparse { offset: u64 },
    #[error("the extended header at byte {offset} is malformed: {problem}")]
    Extension { problem: &'static str, offset: u64 },
    #[error("the member at byte {offset} is not a regular file but has {size} bytes of content")]
    Content { size: u64, offset: u64 },
    #[error("bytes other than zero follow the end of the archive, at or after byte {offset}")]
    Trailing { offset: u64 },
}

/// Kind of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    Regular,
    /// Another name of the member or file with this path.
    HardLink(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Member of an archive, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path as it is stored, not checked.
    pub path: Vec<u8>,
    /// Kind of file.
    pub kind: MemberKind,
    /// Permission bits; higher bits are not checked.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, in whole seconds since 1970.
    pub mtime: u64,
    /// Extended attributes (`SCHILY.xattr.*`), in the order of the archive.
    pub xattrs: Vec<Xattr>,
    /// Length of the content in bytes, 0 unless it is a regular file.
    pub size: u64,
    /// Offset of the content in the archive, in bytes.
    pub offset: u64,
}

/// Reads an archive member by member, from a stream.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    offset: u64,
    /// Unread bytes of the current member's content, and of its padding.
    content: u64,
    padding: u64,
}

/// Extensions that apply to the next member.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: pax::Records,
    any: bool,
}

impl<R: Read> TarReader<R> {
    /// Returns a reader of the archive that starts where `input` is.
    pub fn new(input: R) -> Self {
        Self { input, offset: 0, content: 0, padding: 0 }
    }

    /// Reads the header of the next member, and skips what is unread of the one before. `None` is the end of
    /// the archive, up to which `input` has then been read.
    ///
    /// # Errors
    ///
    /// If the archive cannot be read or is refused.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let at = self.offset;
            let mut header = [0; BLOCK];
            self.fill(&mut header)?;
            if header == [0; BLOCK] {
                if extensions.any {
                    return Err(TarError::Truncated { offset: self.offset });
                }
                self.finish()?;
                return Ok(None);
            }
            check_sum(&header, at)?;
            let problem = |problem| TarError::Extension { problem, offset: at };
            match header[156] {
                b'L' => {
                    let name = self.extension(&header, at)?;
                    let twice = extensions.path.replace(until_null(&name).to_vec()).is_some();
                    if twice {
                        return Err(problem("two long names precede one member"));
                    }
                }
                b'K' => {
                    let name = self.extension(&header, at)?;
                    let twice = extensions.link.replace(until_null(&name).to_vec()).is_some();
                    if twice {
                        return Err(problem("two long link names precede one member"));
                    }
                }
                b'x' => {
                    if !extensions.pax.is_empty() {
                        return Err(problem("two extended headers precede one member"));
                    }
                    let bytes = self.extension(&header, at)?;
                    extensions.pax = pax::parse(&bytes).map_err(problem)?;
                }
                b'g' => {
                    // As `git archive` writes it, with a comment alone. Anything else would change all members.
                    let bytes = self.extension(&header, at)?;
                    if !pax::parse(&bytes).map_err(problem)?.only_comment() {
                        return Err(problem("global records other than `comment` are unsupported"));
                    }
                    continue;
                }
                _ => return self.member(&header, extensions, at).map(Some),
            }
            extensions.any = true;
        }
    }

    /// Reads content of the current member. 0 is its end.
    ///
    /// # Errors
    ///
    /// If the archive cannot be read, or ends before the content.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.read_some(most, buffer)?;
        self.content -= read as u64;
        Ok(read)
    }

    fn member(
        &mut self,
        header: &[u8; BLOCK],
        extensions: Extensions,
        at: u64,
    ) -> Result<Member, TarError> {
        let Extensions { path, link, mut pax, .. } = extensions;
        if pax.sparse {
            return Err(TarError::Sparse { offset: at });
        }
        let number = |field, range: std::ops::Range<usize>| {
            number::parse(&header[range]).ok_or(TarError::Number { field, offset: at })
        };
        let id = |field, range, pax: Option<u64>| {
            let value = pax.map_or_else(|| number(field, range), Ok)?;
            u32::try_from(value).map_err(|_| TarError::Number { field, offset: at })
        };
        let path = pax.path.take().or(path).unwrap_or_else(|| ustar_path(header));
        let target = || link.clone().unwrap_or_else(|| until_null(&header[157..257]).to_vec());
        let device = || -> Result<Device, TarError> {
            let (major, minor) =
                (id("major number", 329..337, None)?, id("minor number", 337..345, None)?);
            Ok(Device { major, minor })
        };
        let kind = match header[156] {
            // Archives of before POSIX mark directories by a slash alone.
            0 | b'0' if path.ends_with(b"/") => MemberKind::Directory,
            0 | b'0' | b'7' => MemberKind::Regular,
            b'1' => MemberKind::HardLink(pax.link.take().unwrap_or_else(target)),
            b'2' => MemberKind::Symlink(pax.link.take().unwrap_or_else(target)),
            b'3' => MemberKind::Character(device()?),
            b'4' => MemberKind::Block(device()?),
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            b'S' => return Err(TarError::Sparse { offset: at }),
            kind => return Err(TarError::Type { kind: kind.into(), offset: at }),
        };
        let size = pax.size.map_or_else(|| number("size", 124..136), Ok)?;
        if size > 0 && kind != MemberKind::Regular {
            return Err(TarError::Content { size, offset: at });
        }
        let mode = id("mode", 100..108, None)?;
        let uid = id("owner", 108..116, pax.uid)?;
        let gid = id("group", 116..124, pax.gid)?;
        let mtime = pax.mtime.map_or_else(|| number("time", 136..148), Ok)?;
        self.announce(size, at)?;
        Ok(Member {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs: pax.xattrs,
            size,
            offset: self.offset,
        })
    }

    /// Content of `size` bytes follows.
    fn announce(&mut self, size: u64, at: u64) -> Result<(), TarError> {
        let end = self.offset.checked_add(size).filter(|&end| end < u64::MAX - BLOCK as u64);
        end.ok_or(TarError::Number { field: "size", offset: at })?;
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// Reads the content of a member that describes the next one.
    fn extension(&mut self, header: &[u8; BLOCK], at: u64) -> Result<Vec<u8>, TarError> {
        let size = number::parse(&header[124..136]);
        let size = size.ok_or(TarError::Number { field: "size", offset: at })?;
        let problem = "it has no content, or more than 1 MiB";
        if size == 0 || size > MAX_EXTENSION {
            return Err(TarError::Extension { problem, offset: at });
        }
        self.announce(size, at)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = self.read(&mut buffer)?;
            if read == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&buffer[..read]);
        }
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 << 10];
        let mut left = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            left -= self.read_some(most, &mut buffer)? as u64;
        }
        Ok(())
    }

    /// After the first block of zeros: nothing but zeros may follow.
    fn finish(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 4096];
        loop {
            let read = match self.input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(TarError::Read(error)),
            };
            if buffer[..read].iter().any(|&byte| byte != 0) {
                return Err(TarError::Trailing { offset: self.offset });
            }
            self.offset += read as u64;
        }
    }

    fn fill(&mut self, buffer: &mut [u8; BLOCK]) -> Result<(), TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            let left = BLOCK - filled;
            filled += self.read_some(left, &mut buffer[filled..])?;
        }
        Ok(())
    }

    /// Reads between 1 and `most` bytes.
    fn read_some(&mut self, most: usize, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(TarError::Truncated { offset: self.offset }),
                Ok(read) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
    }
}

fn until_null(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The name, after the prefix that only POSIX archives have: GNU's use its place for times.
fn ustar_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_null(&header[..100]);
    let prefix = until_null(&header[345..500]);
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// The sum of all bytes, with those of the checksum itself as spaces.
fn check_sum(header: &[u8; BLOCK], offset: u64) -> Result<(), TarError> {
    let stored = number::parse(&header[148..156]);
    let bytes = header.iter().enumerate();
    let bytes = bytes.map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    let unsigned: u64 = bytes.map(u64::from).sum();
    if stored == Some(unsigned) { Ok(()) } else { Err(TarError::Checksum { offset }) }
}
