//! The kernel as QEMU changes it before a firmware without kernel hashes sees it.
//!
//! QEMU writes into the setup header (Linux/x86 boot protocol, "The Real-Mode Kernel Header") what
//! a boot loader would, the place of the initrd among it. OVMF measures the result, so that RTMR1
//! depends on the size of the initrd and, below 2.75 GiB, of the memory.

use crate::source::tdvf::hob::q35_low_memory;

const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const HEAP_END_PTR: usize = 0x224;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
/// The header up to and with `xloadflags`.
const HEADER_END: usize = 0x238;

/// The oldest protocol with every field above; Linux has had it since 3.8.
const OLDEST: u16 = 0x20c;

/// QEMU, version 0.
const LOADER_QEMU: u8 = 0xb0;
const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
const CAN_BE_LOADED_ABOVE_4G: u16 = 0x02;

/// Addresses at which QEMU loads the setup code and the command line of a kernel that is loaded high.
const SETUP: u32 = 0x10000;
const COMMAND_LINE: u32 = 0x20000;
/// Bytes that QEMU's pc and q35 machines reserve at the end of low memory for ACPI tables.
const ACPI_RESERVE: u64 = 0x28000;
const PAGE: u64 = 4096;

/// Why a kernel could not be patched. Offsets are bytes from the start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PatchError {
    #[error("the kernel has {0} bytes, too few for the setup header of a bzImage")]
    Short(usize),
    #[error("not a bzImage: offset {MAGIC:#x} has {0:02x?} instead of \"HdrS\"")]
    Magic([u8; 4]),
    #[error("boot protocol {0:#06x} at offset {VERSION:#x}; {OLDEST:#06x} or later is known")]
    Protocol(u16),
    #[error("the kernel is a zImage (offset {LOADFLAGS:#x}, bit 0), which EDK2 does not start")]
    LoadedLow,
    #[error("an initrd of {length} bytes does not fit the {memory} bytes of memory")]
    Initrd { length: u64, memory: u64 },
}

/// The kernel with an initrd of `initrd` bytes in a guest of `memory` bytes.
///
/// # Errors
/// If it is not a bzImage, or the initrd does not fit.
pub fn patch(kernel: &[u8], initrd: Option<u64>, memory: u64) -> Result<Vec<u8>, PatchError> {
    let header = kernel.first_chunk::<HEADER_END>().ok_or(PatchError::Short(kernel.len()))?;
    let magic = field(header, MAGIC);
    if magic != *b"HdrS" {
        return Err(PatchError::Magic(magic));
    }
    let version = u16::from_le_bytes(field(header, VERSION));
    if version < OLDEST {
        return Err(PatchError::Protocol(version));
    }
    if header[LOADFLAGS] & LOADED_HIGH == 0 {
        return Err(PatchError::LoadedLow);
    }
    let mut patched = kernel.to_vec();
    patched[TYPE_OF_LOADER] = LOADER_QEMU;
    patched[LOADFLAGS] |= CAN_USE_HEAP;
    put(&mut patched, HEAP_END_PTR, COMMAND_LINE - SETUP - 0x200);
    put(&mut patched, CMD_LINE_PTR, COMMAND_LINE);
    if let Some(length) = initrd.filter(|length| *length > 0) {
        let does_not_fit = PatchError::Initrd { length, memory };
        let address = initrd_address(header, length, memory).ok_or(does_not_fit)?;
        put(&mut patched, RAMDISK_IMAGE, address);
        put(&mut patched, RAMDISK_SIZE, u32::try_from(length).map_err(|_| does_not_fit)?);
    }
    Ok(patched)
}

/// As high as the kernel allows and the low memory reaches.
fn initrd_address(header: &[u8; HEADER_END], length: u64, memory: u64) -> Option<u32> {
    let flags = u16::from_le_bytes(field(header, XLOADFLAGS));
    let allowed = if flags & CAN_BE_LOADED_ABOVE_4G != 0 {
        u32::MAX
    } else {
        u32::from_le_bytes(field(header, INITRD_ADDR_MAX))
    };
    let room = q35_low_memory(memory).checked_sub(ACPI_RESERVE)?.checked_sub(1)?;
    let address = u64::from(allowed).min(room).checked_sub(length)?;
    u32::try_from(address & !(PAGE - 1)).ok()
}

fn field<const N: usize>(header: &[u8; HEADER_END], at: usize) -> [u8; N] {
    std::array::from_fn(|index| header[at + index])
}

fn put(kernel: &mut [u8], at: usize, value: u32) {
    kernel[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0; 0x400];
        kernel[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        kernel[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        kernel[LOADFLAGS] = LOADED_HIGH;
        kernel[XLOADFLAGS] = 2;
        kernel
    }

    #[test]
    fn the_initrd_goes_to_the_end_of_low_memory() {
        let gib = 1 << 30;
        let address = |memory| {
            let patched = patch(&kernel(), Some(4096), memory).unwrap();
            u32::from_le_bytes(patched[RAMDISK_IMAGE..RAMDISK_IMAGE + 4].try_into().unwrap())
        };
        assert_eq!(address(2 * gib), 0x8000_0000 - 0x28000 - 0x2000);
        assert_eq!(address(4 * gib), address(2 * gib));
        assert_ne!(address(gib), address(2 * gib));
    }

    #[test]
    fn kernel_that_qemu_rejects_is_rejected() {
        assert_eq!(patch(&[0; 10], None, 0), Err(PatchError::Short(10)));
        assert_eq!(patch(&[0; 0x400], None, 0), Err(PatchError::Magic([0; 4])));
        let large = PatchError::Initrd { length: 1 << 30, memory: 1 << 29 };
        assert_eq!(patch(&kernel(), Some(1 << 30), 1 << 29), Err(large));
        let mut old = kernel();
        old[VERSION] = 4;
        assert_eq!(patch(&old, None, 0), Err(PatchError::Protocol(0x204)));
        let mut low = kernel();
        low[LOADFLAGS] = 0;
        assert_eq!(patch(&low, None, 0), Err(PatchError::LoadedLow));
    }
}
