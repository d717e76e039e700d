//! Linux kernels, and how a VMM boots one directly: no firmware, nothing measured.

mod boot_params;
mod bzimage;
mod direct;
mod elf;
mod pvh;
pub mod qemu_kernel;
mod registers;

pub use bzimage::{BzImage, BzImageError};
pub use direct::{AcpiTables, DirectBoot, DirectBootError};
pub use elf::{ElfEntry, ElfError, ElfKernel, ElfSegment};

use crate::Bytes;

/// A kernel of any kind that can be booted directly.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// Entered at its 64-bit entry.
    BzImage(BzImage),
    /// Entered by PVH where it can be, else at its 64-bit entry.
    Elf(ElfKernel),
}

/// Why a file is not a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// It is neither.
    #[error("neither a bzImage (\"HdrS\" at offset 0x202) nor an ELF file")]
    Unknown,
    /// It claims to be a bzImage.
    #[error("not a bzImage that can be booted")]
    BzImage(#[from] BzImageError),
    /// It claims to be an ELF file.
    #[error("not an ELF kernel that can be booted")]
    Elf(#[from] ElfError),
}

impl Kernel {
    /// Reads the headers of a kernel file.
    ///
    /// # Errors
    /// If the file is of no kind that can be booted, or broken.
    pub fn parse(file: &Bytes) -> Result<Self, KernelError> {
        if ElfKernel::is_magic(file) {
            return Ok(Self::Elf(ElfKernel::parse(file)?));
        }
        if BzImage::is_magic(file) {
            return Ok(Self::BzImage(BzImage::parse(file)?));
        }
        Err(KernelError::Unknown)
    }
}
