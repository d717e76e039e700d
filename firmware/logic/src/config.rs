//! The config page: the measured inputs. It is the image's first page, and the VMM fills it in
//! before launch, so that the launch measurement covers it like the code.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0x00 | 8 | magic, `CASEMATE` |
//! | 0x08 | 4 | version, 1 |
//! | 0x0c | 4 | [`Platform`] |
//! | 0x10 | 8 | [`Flags`] |
//! | 0x18 | 8 | most memory, in bytes |
//! | 0x20 | 4 | most vCPUs |
//! | 0x24 | 28 | zero |
//! | 0x40 | 32 | SHA-256 of the kernel file |
//! | 0x60 | 32 | SHA-256 of the initrd file (of nothing without one) |
//! | 0x80 | 32 | SHA-256 of the command line with its NUL |
//! | 0xa0 | | zero up to the end of the page |
//!
//! The three digests are those of QEMU's kernel-hashes table, so that public tools agree on them.

use crate::bytes::{digest_at, put, u32_at, u64_at};

/// Bytes of the page.
pub const CONFIG_SIZE: usize = 4096;

/// Of the footer's entry that tells where the config page is: a `u32`, its offset from the end of
/// the image. In the mixed-endian order of such tables:
/// 8ae37e5b-2c1f-4d8e-9d5a-63b0c3a5e1f4.
pub const CONFIG_GUID: [u8; 16] = [
    0x5b, 0x7e, 0xe3, 0x8a, 0x1f, 0x2c, 0x8e, 0x4d, 0x9d, 0x5a, 0x63, 0xb0, 0xc3, 0xa5, 0xe1, 0xf4,
];

const MAGIC: [u8; 8] = *b"CASEMATE";
const VERSION: u32 = 1;
const END: usize = 0xa0;

/// What the image was configured for. Nothing that the host can forge chooses: a host that says
/// "plain" to an SEV-SNP guest launches another measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Platform {
    /// No memory encryption. Nothing is measured, and nothing is hashed.
    Plain = 1,
    /// AMD SEV-SNP.
    Snp = 2,
    /// Intel TDX.
    Tdx = 3,
}

impl Platform {
    /// What a page says, whatever else is in it: how a guest ends whose page is wrong.
    #[must_use]
    pub fn of_page(page: &[u8; CONFIG_SIZE]) -> Option<Self> {
        match u32_at(page, 0x0c) {
            1 => Some(Self::Plain),
            2 => Some(Self::Snp),
            3 => Some(Self::Tdx),
            _ => None,
        }
    }
}

/// What is to be otherwise than usual. All of it is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Bit 0. Payloads need not match the digests. For development: such a guest proves nothing about
    /// what it runs.
    pub unmeasured_payload: bool,
    /// Bit 1. The firmware accepts all memory before the kernel starts, which then need not know how.
    pub accept_all: bool,
    /// Bit 2. The image is the one for development, which logs its steps to the serial port. Each image
    /// ends the guest if this is not so.
    pub log: bool,
}

impl Flags {
    const fn to_bits(self) -> u64 {
        self.unmeasured_payload as u64 | (self.accept_all as u64) << 1 | (self.log as u64) << 2
    }

    /// `None` if there are others.
    fn from_bits(bits: u64) -> Option<Self> {
        let [unmeasured_payload, accept_all, log] = [1, 2, 4].map(|bit| bits & bit != 0);
        let flags = Self { unmeasured_payload, accept_all, log };
        (flags.to_bits() == bits).then_some(flags)
    }
}

/// The measured inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the guest is launched on.
    pub platform: Platform,
    /// What is to be otherwise than usual.
    pub flags: Flags,
    /// The most memory that the loader window may name, in bytes.
    pub most_memory: u64,
    /// The most vCPUs that the loader window may name.
    pub most_vcpus: u32,
    /// SHA-256 of the kernel file.
    pub kernel: [u8; 32],
    /// SHA-256 of the initrd file, of nothing if there is none.
    pub initrd: [u8; 32],
    /// SHA-256 of the command line with its NUL.
    pub command_line: [u8; 32],
}

impl Config {
    /// The page as it stands in the image.
    #[must_use]
    pub fn to_page(&self) -> [u8; CONFIG_SIZE] {
        let mut page = [0; CONFIG_SIZE];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 0x08, &VERSION.to_le_bytes());
        put(&mut page, 0x0c, &(self.platform as u32).to_le_bytes());
        put(&mut page, 0x10, &self.flags.to_bits().to_le_bytes());
        put(&mut page, 0x18, &self.most_memory.to_le_bytes());
        put(&mut page, 0x20, &self.most_vcpus.to_le_bytes());
        put(&mut page, 0x40, &self.kernel);
        put(&mut page, 0x60, &self.initrd);
        put(&mut page, 0x80, &self.command_line);
        page
    }

    /// Reads the page; `None` if it is not one, has not been filled in, or says something unknown.
    #[must_use]
    pub fn from_page(page: &[u8; CONFIG_SIZE]) -> Option<Self> {
        let platform = Platform::of_page(page)?;
        let flags = Flags::from_bits(u64_at(page, 0x10))?;
        let unused = page[0x24..0x40].iter().chain(&page[END..]);
        let known = page.starts_with(&MAGIC)
            && u32_at(page, 0x08) == VERSION
            && unused.fold(0, |seen, byte| seen | byte) == 0;
        known.then(|| Self {
            platform,
            flags,
            most_memory: u64_at(page, 0x18),
            most_vcpus: u32_at(page, 0x20),
            kernel: digest_at(page, 0x40),
            initrd: digest_at(page, 0x60),
            command_line: digest_at(page, 0x80),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            platform: Platform::Snp,
            flags: Flags::default(),
            most_memory: 1 << 40,
            most_vcpus: 255,
            kernel: [1; 32],
            initrd: [2; 32],
            command_line: [3; 32],
        }
    }

    #[test]
    fn a_config_survives_its_page() {
        assert_eq!(Config::from_page(&config().to_page()), Some(config()));
        for flags in (0..8).map(|bits| Flags::from_bits(bits).unwrap()) {
            let other = Config { flags, ..config() };
            assert_eq!(Config::from_page(&other.to_page()), Some(other));
        }
    }

    #[test]
    fn every_byte_counts_or_must_be_zero() {
        let page = config().to_page();
        for at in 0..CONFIG_SIZE {
            let mut changed = page;
            changed[at] ^= 0x80;
            assert_ne!(Config::from_page(&changed), Some(config()), "{at:#x}");
        }
        assert_eq!(Config::from_page(&[0; CONFIG_SIZE]), None, "an image that nobody filled in");
    }
}
