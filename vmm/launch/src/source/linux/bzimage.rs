//! Linux bzImage: the setup header, and the part of the file that is loaded.
//!
//! Source: Documentation/arch/x86/boot.rst. All fields are little-endian; offsets count from the
//! start of the file.

use crate::{Bytes, Gpa};

/// "HdrS" at 0x202.
const MAGIC: &[u8] = b"HdrS";
/// The first protocol with `xloadflags` and a 64-bit entry.
const MIN_VERSION: u16 = 0x020c;
/// xloadflags: the kernel has a 64-bit entry at 0x200 of its loaded part.
const XLF_KERNEL_64: u16 = 1 << 0;
/// loadflags: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
const SECTOR: usize = 512;
/// Offset of the setup header in the file and in the zero page.
pub(super) const HEADER: usize = 0x1f1;
/// The zero page has room for the header up to here (`edd_mbr_sig_buffer`).
const HEADER_MAX_END: usize = 0x290;

/// Why a file is not a bzImage that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BzImageError {
    /// The magic number is missing.
    #[error("no \"HdrS\" at offset 0x202: not a bzImage")]
    Magic,
    /// The boot protocol is too old.
    #[error("boot protocol {}.{:02} at offset 0x206 is older than 2.12", .0 >> 8, .0 & 0xff)]
    Version(u16),
    /// It is a zImage, or a 32-bit kernel.
    #[error(
        "loadflags {loadflags:#x} and xloadflags {xloadflags:#x} do not describe a 64-bit kernel"
    )]
    NotA64BitKernel {
        /// At 0x211.
        loadflags: u8,
        /// At 0x236.
        xloadflags: u16,
    },
    /// The length of the header, told by the jump at 0x200, cannot be.
    #[error("the setup header ends at {0:#x}; it can end between 0x268 and 0x290")]
    HeaderLength(usize),
    /// There is less of the file than its header says.
    #[error("the header describes a file of {expected} bytes, but the file has {found}")]
    Truncated {
        /// Setup sectors and kernel, in bytes.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// The kernel cannot need less memory than its file has bytes.
    #[error("init_size {init_size:#x} is smaller than the {loaded:#x} bytes to be loaded")]
    InitSize {
        /// At 0x260.
        init_size: u32,
        /// Length of the part that is loaded.
        loaded: u64,
    },
}

/// A bzImage whose header has been checked.
#[derive(Clone, Debug)]
pub struct BzImage {
    /// The setup header, 0x1f1 up to its own end, as it goes into the zero page.
    pub setup_header: Bytes,
    /// Protected-mode kernel, the part that is loaded.
    pub kernel: Bytes,
    /// Preferred address of the kernel, at which Casemate loads it.
    pub pref_address: Gpa,
    /// Bytes of memory that must be free from there on.
    pub init_size: u32,
    /// The highest address of the last byte of an initrd.
    pub initrd_addr_max: u32,
    /// The longest command line, without its terminating zero.
    pub cmdline_size: u32,
}

impl BzImage {
    /// The 64-bit entry lies this far behind the load address.
    pub const ENTRY_64: u64 = 0x200;

    /// Whether `file` claims to be one.
    #[must_use]
    pub fn is_magic(file: &[u8]) -> bool {
        file.get(0x202..0x206) == Some(MAGIC)
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    /// If the file is no bzImage of a 64-bit kernel with boot protocol 2.12 or later, or if its
    /// header contradicts itself or the length of the file.
    pub fn parse(file: &Bytes) -> Result<Self, BzImageError> {
        if !Self::is_magic(file) {
            return Err(BzImageError::Magic);
        }
        let short = |expected: usize| BzImageError::Truncated {
            expected: expected as u64,
            found: file.len() as u64,
        };
        let header_end = 0x202 + usize::from(byte(file, 0x201).ok_or(short(0x202))?);
        if !(0x268..=HEADER_MAX_END).contains(&header_end) {
            return Err(BzImageError::HeaderLength(header_end));
        }
        let setup_header = file.slice(HEADER..header_end).ok_or(short(header_end))?;
        // All fields lie below 0x268, which the file has.
        let u16_at = |at| read::<2>(file, at).map(u16::from_le_bytes).ok_or(short(header_end));
        let u32_at = |at| read::<4>(file, at).map(u32::from_le_bytes).ok_or(short(header_end));
        let u64_at = |at| read::<8>(file, at).map(u64::from_le_bytes).ok_or(short(header_end));

        let version = u16_at(0x206)?;
        if version < MIN_VERSION {
            return Err(BzImageError::Version(version));
        }
        let (loadflags, xloadflags) = (byte(file, 0x211).unwrap_or(0), u16_at(0x236)?);
        if loadflags & LOADED_HIGH == 0 || xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::NotA64BitKernel { loadflags, xloadflags });
        }
        let kernel = loaded_part(file, u32_at(0x1f4)?)?;
        let init_size = u32_at(0x260)?;
        if u64::from(init_size) < kernel.len() as u64 {
            return Err(BzImageError::InitSize { init_size, loaded: kernel.len() as u64 });
        }
        Ok(Self {
            setup_header,
            kernel,
            pref_address: Gpa(u64_at(0x258)?),
            init_size,
            initrd_addr_max: u32_at(0x22c)?,
            cmdline_size: u32_at(0x238)?,
        })
    }

    /// A kernel's file in two parts, as QEMU gives it to OVMF: the setup code, and all that follows.
    #[must_use]
    pub fn split(file: &Bytes) -> [Bytes; 2] {
        let setup = setup_size(file).min(file.len());
        [0..setup, setup..file.len()].map(|part| file.slice(part).unwrap_or_default())
    }
}

/// The boot sector and the setup sectors, in bytes.
fn setup_size(file: &[u8]) -> usize {
    let setup_sects = match byte(file, HEADER) {
        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        None | Some(0) => 4,
        Some(sectors) => usize::from(sectors),
    };
    (setup_sects + 1) * SECTOR
}

/// The protected-mode kernel: `syssize` paragraphs of 16 bytes behind the setup sectors. A
/// signature may follow; the last paragraph may be incomplete.
fn loaded_part(file: &Bytes, syssize: u32) -> Result<Bytes, BzImageError> {
    let start = setup_size(file);
    let expected = start as u64 + u64::from(syssize) * 16;
    let found = file.len() as u64;
    if expected >= found + 16 || syssize == 0 {
        return Err(BzImageError::Truncated { expected, found });
    }
    let end = usize::try_from(expected).unwrap_or(usize::MAX).min(file.len());
    file.slice(start..end).ok_or(BzImageError::Truncated { expected, found })
}

fn byte(file: &[u8], at: usize) -> Option<u8> {
    file.get(at).copied()
}

fn read<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as Debian's kernels have it, and `len` bytes of kernel.
    pub(crate) fn image(len: usize) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1f4, &u32::try_from(len / 16).unwrap().to_le_bytes());
        put(0x200, &[0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &0x20f_u16.to_le_bytes());
        put(0x211, &[LOADED_HIGH]);
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(0x236, &0x7f_u16.to_le_bytes());
        put(0x238, &2047_u32.to_le_bytes());
        put(0x258, &0x100_0000_u64.to_le_bytes());
        put(0x260, &0x37d_d000_u32.to_le_bytes());
        file.extend((0..len).map(|at| u8::try_from(at % 251).unwrap()));
        file
    }

    fn parse(file: Vec<u8>) -> Result<BzImage, BzImageError> {
        BzImage::parse(&file.into())
    }

    #[test]
    fn fields_are_where_the_protocol_says() {
        let mut file = image(160);
        file.extend(b"signature");
        let image = parse(file).unwrap();
        assert_eq!(image.kernel.len(), 160);
        assert_eq!(image.kernel[1], 1);
        assert_eq!(image.pref_address, Gpa(0x100_0000));
        assert_eq!(image.init_size, 0x37d_d000);
        assert_eq!(image.setup_header.len(), 0x26c - 0x1f1);
        assert_eq!(image.cmdline_size, 2047);
    }

    #[test]
    fn kernel_without_64_bit_entry_is_rejected() {
        let broken = |at: usize, bytes: &[u8]| {
            let mut file = image(160);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            parse(file).unwrap_err()
        };
        assert_eq!(parse(Vec::new()).unwrap_err(), BzImageError::Magic);
        assert_eq!(broken(0x202, b"hdrs"), BzImageError::Magic);
        assert_eq!(broken(0x206, &[0x0b, 2]), BzImageError::Version(0x20b));
        assert_eq!(
            broken(0x236, &[0]),
            BzImageError::NotA64BitKernel { loadflags: 1, xloadflags: 0 }
        );
        assert_eq!(broken(0x201, &[0xff]), BzImageError::HeaderLength(0x301));
        assert_eq!(
            broken(0x1f4, &[0xff]),
            BzImageError::Truncated { expected: 1024 + 0xff * 16, found: 1024 + 160 }
        );
        assert_eq!(
            broken(0x260, &[1, 0, 0, 0]),
            BzImageError::InitSize { init_size: 1, loaded: 160 }
        );
    }

    proptest! {
        #[test]
        fn any_change_is_refused_or_stays_inside_the_file(
            at in 0_usize..1024, value: u8, cut in 0_usize..1200,
        ) {
            let mut file = image(160);
            file[at] = value;
            file.truncate(cut);
            if let Ok(image) = parse(file) {
                prop_assert!(!image.kernel.is_empty() && image.kernel.len() <= cut);
                prop_assert!(u64::from(image.init_size) >= image.kernel.len() as u64);
            }
        }
    }
}
