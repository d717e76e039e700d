//! What a driver asks of a disk (VIRTIO 1.2, section 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

/// Bytes of a sector. The protocol counts in these, whatever the disk's blocks are.
pub const SECTOR: u64 = 512;

/// Bytes of `struct virtio_blk_req` before its data: type, reserved, sector.
pub const HEADER_LEN: u32 = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
pub const SEGMENT_LEN: u32 = 16;

/// Bytes of the answer to GET_ID, unless the driver has room for fewer.
pub const ID_LEN: usize = 20;

/// Most sectors that one discard or write-zeroes request may name: 1 GiB.
pub const MAX_CLEAR_SECTORS: u32 = 1 << 21;

/// Flag of a write-zeroes segment: the blocks may be given back to the host.
const UNMAP: u32 = 1;

/// How a request ended: the byte at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(clippy::cast_possible_truncation, reason = "the three values are 0, 1 and 2")]
pub enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// The disk failed, or the request makes no sense.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// The disk cannot do this.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Size in sectors.
    pub sectors: u64,
    /// Only reads are allowed.
    pub read_only: bool,
}

/// Part of the disk, in bytes; never empty, never past the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// From the disk into all writable bytes of the chain but the last.
    Read(Extent),
    /// From the readable bytes behind the header to the disk.
    Write(Extent),
    /// All completed writes must reach stable storage.
    Flush,
    /// The data is no longer needed.
    Discard(Extent),
    /// The sectors read as zeroes from now on.
    WriteZeroes {
        /// Which.
        extent: Extent,
        /// The blocks may be given back to the host.
        unmap: bool,
    },
    /// The serial number.
    Identify,
}

impl Request {
    /// Checks a request that starts with `head` (the header and what follows it, up to
    /// [`HEADER_LEN`] + [`SEGMENT_LEN`] bytes), and has `readable` and `writable` bytes of data
    /// without header and status byte.
    ///
    /// # Errors
    /// The status to answer with.
    pub fn parse(
        head: &[u8],
        readable: u64,
        writable: u64,
        disk: &Geometry,
    ) -> Result<Self, Status> {
        let kind = u32_at(head, 0)?;
        let sector = u64_at(head, 8)?;
        match kind {
            VIRTIO_BLK_T_IN if readable == 0 => disk.extent(sector, writable).map(Self::Read),
            VIRTIO_BLK_T_OUT if writable == 0 => {
                disk.writable()?;
                disk.extent(sector, readable).map(Self::Write)
            }
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Err(Status::IoError),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Identify),
            VIRTIO_BLK_T_DISCARD => {
                let (extent, flags) = disk.segment(head, readable)?;
                // Section 5.2.6.2: the unmap flag has no meaning here.
                if flags == 0 { Ok(Self::Discard(extent)) } else { Err(Status::Unsupported) }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let (extent, flags) = disk.segment(head, readable)?;
                if flags & !UNMAP != 0 {
                    return Err(Status::Unsupported);
                }
                Ok(Self::WriteZeroes { extent, unmap: flags & UNMAP != 0 })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

impl Geometry {
    fn writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    /// `len` bytes from `sector` on.
    fn extent(&self, sector: u64, len: u64) -> Result<Extent, Status> {
        let end = sector.checked_add(len.div_ceil(SECTOR)).ok_or(Status::IoError)?;
        if len == 0 || end > self.sectors {
            return Err(Status::IoError);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        if len.is_multiple_of(SECTOR) { Ok(Extent { offset, len }) } else { Err(Status::IoError) }
    }

    /// The one segment of a discard or write-zeroes request, and its flags.
    fn segment(&self, head: &[u8], readable: u64) -> Result<(Extent, u32), Status> {
        if self.read_only {
            return Err(Status::Unsupported);
        }
        if readable != u64::from(SEGMENT_LEN) {
            return Err(Status::IoError);
        }
        let (sector, sectors) = (u64_at(head, 16)?, u32_at(head, 24)?);
        if sectors > MAX_CLEAR_SECTORS {
            return Err(Status::IoError);
        }
        let extent = self.extent(sector, u64::from(sectors) * SECTOR)?;
        Ok((extent, u32_at(head, 28)?))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Status> {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Status::IoError)?;
    Ok(u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Status> {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Status::IoError)?;
    Ok(u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Geometry = Geometry { sectors: 2048, read_only: false };

    fn head(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    fn clear(kind: u32, sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        let segment = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()];
        [head(kind, 0), segment.concat()].concat()
    }

    #[test]
    fn reads_and_writes_are_whole_sectors_within_the_disk() {
        let read = |sector, len| Request::parse(&head(0, sector), 0, len, &DISK);
        assert_eq!(read(2, 1024), Ok(Request::Read(Extent { offset: 1024, len: 1024 })));
        assert!(read(2047, 512).is_ok());
        for (sector, len) in
            [(2048, 512), (2047, 1024), (0, 0), (0, 511), (0, 513), (u64::MAX, 512), (1 << 55, 512)]
        {
            assert_eq!(read(sector, len), Err(Status::IoError), "{sector} {len}");
        }
        assert!(Request::parse(&head(1, 0), 512, 0, &DISK).is_ok());
        assert_eq!(Request::parse(&head(1, 0), 512, 1, &DISK), Err(Status::IoError));
        assert_eq!(Request::parse(&head(0, 0), 1, 512, &DISK), Err(Status::IoError));
        assert_eq!(Request::parse(&head(0, 0)[..15], 0, 512, &DISK), Err(Status::IoError));
    }

    #[test]
    fn a_read_only_disk_is_only_read() {
        let disk = Geometry { read_only: true, ..DISK };
        assert!(Request::parse(&head(0, 0), 0, 512, &disk).is_ok());
        assert_eq!(Request::parse(&head(1, 0), 512, 0, &disk), Err(Status::IoError));
        assert_eq!(Request::parse(&head(4, 0), 0, 0, &disk), Ok(Request::Flush));
        for kind in [11, 13] {
            let head = clear(kind, 0, 1, 0);
            assert_eq!(Request::parse(&head, 16, 0, &disk), Err(Status::Unsupported));
        }
    }

    #[test]
    fn clearing_takes_one_segment_and_known_flags() {
        let extent = Extent { offset: 4096, len: 8192 };
        let parse = |head: &[u8], len| Request::parse(head, len, 0, &DISK);
        assert_eq!(parse(&clear(11, 8, 16, 0), 16), Ok(Request::Discard(extent)));
        for (flags, unmap) in [(0, false), (1, true)] {
            let request = Request::WriteZeroes { extent, unmap };
            assert_eq!(parse(&clear(13, 8, 16, flags), 16), Ok(request));
        }
        assert_eq!(parse(&clear(11, 8, 16, 1), 16), Err(Status::Unsupported));
        assert_eq!(parse(&clear(13, 8, 16, 2), 16), Err(Status::Unsupported));
        for (sector, sectors) in [(0, 0), (2048, 1), (0, u32::MAX), (u64::MAX, 1)] {
            assert_eq!(parse(&clear(11, sector, sectors, 0), 16), Err(Status::IoError));
        }
        assert_eq!(parse(&clear(13, 0, 1, 0), 32), Err(Status::IoError));
        assert_eq!(parse(&clear(13, 0, 1, 0)[..31], 16), Err(Status::IoError));
    }

    #[test]
    fn what_nobody_offered_is_unsupported() {
        for kind in [2, 3, 10, 14, 15, 0x8000_0000, u32::MAX] {
            let answer = Request::parse(&head(kind, 0), 0, 512, &DISK);
            assert_eq!(answer, Err(Status::Unsupported), "{kind}");
        }
    }

    proptest! {
        #[test]
        fn no_request_leaves_the_disk(
            mut head in prop::collection::vec(any::<u8>(), 0..40),
            kind in prop_oneof![0u8..16, any::<u8>()],
            near in prop::option::of(0u16..4096),
            readable in prop_oneof![Just(16), 0u64..1 << 33], writable in 0u64..1 << 33,
            sectors in prop_oneof![0u64..4096, any::<u64>()], read_only: bool,
        ) {
            if head.len() >= 16 {
                head[..4].copy_from_slice(&u32::from(kind).to_le_bytes());
                if let Some(sector) = near {
                    head[8..16].copy_from_slice(&u64::from(sector).to_le_bytes());
                }
            }
            let disk = Geometry { sectors, read_only };
            let Ok(request) = Request::parse(&head, readable, writable, &disk) else { return Ok(()) };
            let (extent, writes) = match request {
                Request::Read(extent) => (extent, false),
                Request::Write(extent) | Request::Discard(extent)
                | Request::WriteZeroes { extent, .. } => (extent, true),
                Request::Flush | Request::Identify => return Ok(()),
            };
            prop_assert!(extent.len > 0 && !(writes && read_only));
            let end = u128::from(extent.offset) + u128::from(extent.len);
            prop_assert!(end <= u128::from(sectors) * u128::from(SECTOR));
            prop_assert_eq!((extent.offset | extent.len) % SECTOR, 0);
        }
    }
}
