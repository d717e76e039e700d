//! What the firmware must know of a Linux kernel file (Linux, Documentation/arch/x86/boot.rst).

use crate::bytes::{u16_at, u32_at};
use crate::fatal::Fatal;
use crate::layout::KERNEL;

/// Offset of the setup header in the file, and in the boot parameters.
pub const HEADER: usize = 0x1f1;

/// Boot protocol 2.12 brought the flags that announce a 64-bit entry.
const VERSION: u16 = 0x20c;

/// `XLF_KERNEL_64`: there is a 64-bit entry, 0x200 bytes behind the load address.
const HAS_64_BIT_ENTRY: u16 = 1;

/// Bytes of a file's real-mode part: what comes before the part that is loaded at [`KERNEL`].
/// `sectors` is the byte at 0x1f1.
#[must_use]
pub fn setup_size(sectors: u8) -> u64 {
    let sectors = if sectors == 0 { 4 } else { u64::from(sectors) };
    (sectors + 1) * 512
}

/// A kernel that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where the setup header ends, in the file.
    pub header_end: usize,
    /// Bytes that the kernel needs from [`KERNEL`] on before it has read its memory map.
    pub memory: u64,
    /// The highest address that the initrd may have.
    pub initrd_limit: u64,
}

impl Kernel {
    /// Reads the header of a kernel `file` whose digest is known to be right.
    ///
    /// # Errors
    /// [`Fatal::KernelFormat`] if it is no bzImage, has no 64-bit entry, or cannot be at 16 MiB.
    pub fn from_file(file: &[u8]) -> Result<Self, Fatal> {
        let byte = |at: usize| file.get(at).copied().unwrap_or_default();
        let header_end = 0x202 + usize::from(byte(0x201));
        let alignment = u64::from(u32_at(file, 0x230));
        let relocatable = byte(0x234) != 0;
        let preferred = u64::from(u32_at(file, 0x258)) | u64::from(u32_at(file, 0x25c)) << 32;
        let fits =
            preferred == KERNEL || relocatable && alignment > 0 && KERNEL.is_multiple_of(alignment);
        let known = file.get(0x202..0x206) == Some(b"HdrS".as_slice())
            && u16_at(file, 0x206) >= VERSION
            && u16_at(file, 0x236) & HAS_64_BIT_ENTRY != 0
            && header_end > 0x264;
        let loaded = (file.len() as u64).saturating_sub(setup_size(byte(HEADER)));
        if !known || !fits || loaded == 0 {
            return Err(Fatal::KernelFormat);
        }
        Ok(Self {
            header_end,
            memory: u64::from(u32_at(file, 0x260)).max(loaded),
            initrd_limit: u64::from(u32_at(file, 0x22c)),
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::put;

    pub(crate) fn file() -> Vec<u8> {
        let mut file = vec![0; 0x2000];
        put(&mut file, 0x1f1, &[3]);
        put(&mut file, 0x201, &[0x6c]);
        put(&mut file, 0x202, b"HdrS");
        put(&mut file, 0x206, &0x20f_u16.to_le_bytes());
        put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
        put(&mut file, 0x234, &[1]);
        put(&mut file, 0x236, &1_u16.to_le_bytes());
        put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
        put(&mut file, 0x260, &0x300_0000_u32.to_le_bytes());
        file
    }

    #[test]
    fn a_header_is_read() {
        let kernel = Kernel::from_file(&file()).unwrap();
        assert_eq!(kernel.memory, 0x300_0000);
        assert_eq!(kernel.header_end, 0x26e);
        assert_eq!(setup_size(0), 2560);
    }

    #[test]
    fn what_cannot_be_loaded_is_refused() {
        let with = |at, value: &[u8]| {
            let mut file = file();
            put(&mut file, at, value);
            Kernel::from_file(&file)
        };
        let refused = Err(Fatal::KernelFormat);
        assert_eq!(with(0x202, b"hdrS"), refused);
        assert_eq!(with(0x206, &[0x0b]), refused, "an older protocol");
        assert_eq!(with(0x236, &[0]), refused, "no 64-bit entry");
        assert_eq!(with(0x1f1, &[15]), refused, "nothing to load");
        assert!(with(0x258, &[1]).is_ok(), "it can be moved");
        let mut fixed = file();
        put(&mut fixed, 0x258, &[1]);
        put(&mut fixed, 0x234, &[0]);
        assert_eq!(Kernel::from_file(&fixed), refused);
        assert_eq!(Kernel::from_file(&[]), refused);
    }

    proptest! {
        #[test]
        fn whatever_a_header_says_is_within_the_file_or_refused(
            changes in prop::collection::vec((HEADER..0x270, any::<u8>()), 0..40),
            length in 0..0x2000_usize,
        ) {
            let mut file = file();
            for (at, value) in changes {
                put(&mut file, at, &[value]);
            }
            file.truncate(length);
            if let Ok(kernel) = Kernel::from_file(&file) {
                prop_assert!(kernel.memory > 0 && u32::try_from(kernel.memory).is_ok());
                prop_assert!((0x265..=0x301).contains(&kernel.header_end));
                prop_assert!(setup_size(file[HEADER]) < file.len() as u64);
            }
        }
    }
}
