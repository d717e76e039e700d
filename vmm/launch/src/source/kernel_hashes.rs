//! Hashes of a kernel, its initial RAM disk and its command line, which measured firmware checks.
//!
//! The table is QEMU's (`target/i386/sev.c`, `SevHashTable`), and OVMF's
//! `OvmfPkg/AmdSev/BlobVerifierLibSevHashes` reads it.

use super::Guid;

/// Bytes of the table: 168, padded to a multiple of 16.
pub(crate) const TABLE_SIZE: usize = 176;

/// Of the table without padding, its header included.
const TABLE_LENGTH: u16 = 168;
const ENTRY_LENGTH: u16 = 50;

const TABLE: Guid = Guid::new(0x9438d606_4f22_4cc9_b479_a793d411fd21);
const CMDLINE: Guid = Guid::new(0x97d02dd8_bd20_4c94_aa78_e7714d36ab2a);
const INITRD: Guid = Guid::new(0x44baf731_3a2f_4bd7_9af1_41e29169781d);
const KERNEL: Guid = Guid::new(0x4de79437_abd2_427f_b835_d5b172d2045b);

/// SHA-256 of what a kernel is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelHashes {
    /// Of the file, unmodified.
    pub kernel: [u8; 32],
    /// Of the file; of nothing where there is none.
    pub initrd: [u8; 32],
    /// Of the text and one zero byte.
    pub cmdline: [u8; 32],
}

impl KernelHashes {
    /// Hashes a kernel file, an initial RAM disk (empty if there is none) and a command line
    /// (without its zero byte).
    #[must_use]
    pub fn new(kernel: &[u8], initrd: &[u8], cmdline: &[u8]) -> Self {
        Self {
            kernel: sha256(&[kernel]),
            initrd: sha256(&[initrd]),
            cmdline: sha256(&[cmdline, &[0]]),
        }
    }

    /// The table as the firmware reads it.
    #[must_use]
    pub fn table(&self) -> [u8; TABLE_SIZE] {
        let mut bytes = Vec::with_capacity(TABLE_SIZE);
        bytes.extend(TABLE.0);
        bytes.extend(TABLE_LENGTH.to_le_bytes());
        for (guid, hash) in [(CMDLINE, self.cmdline), (INITRD, self.initrd), (KERNEL, self.kernel)]
        {
            bytes.extend(guid.0);
            bytes.extend(ENTRY_LENGTH.to_le_bytes());
            bytes.extend(hash);
        }
        let mut table = [0; TABLE_SIZE];
        table[..usize::from(TABLE_LENGTH)].copy_from_slice(&bytes);
        table
    }
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
