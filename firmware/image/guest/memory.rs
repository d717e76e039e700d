//! Guest memory: how it becomes the guest's own, and how the loader window stays the host's.

use core::arch::asm;

use casemate_firmware_logic::accept::Accepted;
use casemate_firmware_logic::config::{Config, Platform};
use casemate_firmware_logic::cpuid::Encryption;
use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{GRANULE, LOW_MEMORY_END, PAGE, WINDOW, WINDOW_END};
use casemate_firmware_logic::window::Range;

use crate::tdx::Domain;
use crate::{snp, tdx};

/// What memory is, by platform.
#[derive(Clone, Copy)]
pub enum Memory {
    /// All of it the guest's, and the host's.
    Plain,
    /// Private where the C-bit is set, once validated.
    Snp(Encryption),
    /// Private where the highest bit is clear, once accepted.
    Tdx(Domain),
}

impl Memory {
    /// Asks the platform, and makes the loader window shared. `c_bit`: in the page tables.
    pub fn start(config: &Config, c_bit: u32) -> Result<Self, Fatal> {
        Ok(match config.platform {
            Platform::Plain => Self::Plain,
            Platform::Snp => {
                let encryption = snp::start(c_bit)?;
                change_window(1 << encryption.c_bit);
                Self::Snp(encryption)
            }
            Platform::Tdx => {
                let domain = tdx::start(config)?;
                change_window(1 << (domain.address_bits - 1));
                Self::Tdx(domain)
            }
        })
    }

    /// Accepts every page of `range`, in large pages where the host has such.
    pub fn accept(self, accepted: &mut Accepted, range: Range) -> Result<(), Fatal> {
        accepted.claim(range)?;
        if matches!(self, Self::Plain) {
            return Ok(());
        }
        let mut address = range.start;
        while address < range.end() {
            let whole = address.is_multiple_of(GRANULE) && range.end() - address >= GRANULE;
            if whole && self.accept_page(address, true)? {
                address += GRANULE;
                continue;
            }
            let end = range.end().min(address + GRANULE - address % GRANULE);
            while address < end {
                self.accept_page(address, false)?;
                address += PAGE;
            }
        }
        Ok(())
    }

    /// `false` if the host has no large page there.
    fn accept_page(self, address: u64, large: bool) -> Result<bool, Fatal> {
        match self {
            Self::Plain => Ok(true),
            Self::Snp(encryption) => {
                snp::accept(mapped(address, encryption.c_bit), large, encryption)
            }
            Self::Tdx(_) => tdx::accept(address, large),
        }
    }

    /// Bits of private guest-physical addresses.
    pub fn address_bits(self) -> u32 {
        match self {
            Self::Plain => 52,
            Self::Snp(encryption) => encryption.c_bit,
            Self::Tdx(domain) => domain.address_bits - 1,
        }
    }
}

/// The entry of the page tables that maps the granule at `address`, below 4 GiB.
fn entry(address: u64) -> *mut u64 {
    let tables: u64;
    // SAFETY: loads a constant.
    unsafe {
        asm!("movabs {}, offset page_tables", out(reg) tables, options(pure, nomem, nostack));
    }
    // The page directories follow each other, behind the two tables above them.
    (tables + 2 * PAGE + address / GRANULE * 8) as *mut u64
}

/// Where private memory is mapped: below 4 GiB at its address. What is above is mapped when it is
/// asked for, a granule at a time, in the place of the one behind low memory, where never is any.
fn mapped(address: u64, c_bit: u32) -> u64 {
    if address < 4 << 30 {
        return address;
    }
    // Present, writable, large.
    let (entry, wanted) = (entry(LOW_MEMORY_END), address & !(GRANULE - 1) | 1 << c_bit | 0x83);
    // SAFETY: only this function changes the entry, nothing that Rust knows of is mapped by it, and
    // the old one is forgotten.
    unsafe {
        if entry.read_volatile() != wanted {
            entry.write_volatile(wanted);
            asm!("invlpg [{}]", in(reg) LOW_MEMORY_END, options(nostack, preserves_flags));
        }
    }
    LOW_MEMORY_END + address % GRANULE
}

/// Whether [`change_window`] has made the window shared. The C-bit is above all addresses there.
pub fn window_is_shared() -> bool {
    // SAFETY: an entry of the page tables.
    let entry = unsafe { entry(WINDOW).read_volatile() };
    entry >> 32 == 0
}

/// Flips the bit that tells private from shared in the entries that map the loader window.
fn change_window(bit: u64) {
    let mut address = WINDOW;
    while address < WINDOW_END {
        let entry = entry(address);
        // SAFETY: an entry of the page tables, which only this code changes; nothing that Rust
        // knows of is mapped by it.
        unsafe { entry.write_volatile(entry.read_volatile() ^ bit) };
        address += GRANULE;
    }
    // SAFETY: the same tables again, so that no old entry is in use.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}
