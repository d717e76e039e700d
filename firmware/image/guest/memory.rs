//! Guest memory: how it becomes the guest's own, and how the loader window stays the host's. Nothing
//! that can be written can be executed while the firmware runs.

use core::arch::asm;

use casemate_firmware_logic::accept::Accepted;
use casemate_firmware_logic::config::{Config, Platform};
use casemate_firmware_logic::cpuid::Encryption;
use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{GRANULE, IMAGE, LOW_MEMORY_END, PAGE, WINDOW, WINDOW_END};
use casemate_firmware_logic::window::Range;

use crate::tdx::Domain;
use crate::{mem, snp, tdx};

/// Bits of entries that map a granule (AMD64 APM volume 2, section 5.3).
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Where page tables lead by themselves: pages above are mapped when they are needed.
const MAPPED_END: u64 = 4 << 30;

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
    /// Asks the platform, and gives each part of memory the rights that it needs. `c_bit`: in the page
    /// tables.
    pub fn start(config: &Config, c_bit: u32) -> Result<Self, Fatal> {
        let memory = match config.platform {
            Platform::Plain => Self::Plain,
            Platform::Snp => Self::Snp(snp::start(c_bit)?),
            Platform::Tdx => Self::Tdx(tdx::start(config)?),
        };
        memory.protect(false);
        Ok(memory)
    }

    /// Lets the kernel execute what is in memory; it runs on these page tables until it has its own.
    pub fn open_to_kernel(self) {
        self.protect(true);
    }

    /// Maps memory as what it is: RAM private and writable, the loader window shared and for reading,
    /// the image private and for execution. Nothing else is mapped. The kernel may execute RAM.
    fn protect(self, kernel: bool) {
        let (private, shared) = match self {
            Self::Plain => (0, 0),
            Self::Snp(encryption) => (1 << encryption.c_bit, 0),
            Self::Tdx(domain) => (0, 1 << (domain.address_bits - 1)),
        };
        // The development image has a page there through which it talks to the host.
        let window_writable = if cfg!(firmware_log) { WRITABLE } else { 0 };
        let ram = if kernel { WRITABLE } else { WRITABLE | NO_EXECUTE };
        let mut address = 0;
        while address < MAPPED_END {
            let rights = match address {
                0..LOW_MEMORY_END => PRESENT | private | ram,
                WINDOW..WINDOW_END => PRESENT | shared | window_writable | NO_EXECUTE,
                // The granule of the image: there is nothing else in it.
                _ if address >= IMAGE & !(GRANULE - 1) => PRESENT | private,
                _ => 0,
            };
            let wanted = if rights == 0 { 0 } else { address | LARGE | rights };
            // SAFETY: an entry of the page tables, which only this module changes. What Rust knows of
            // stays mapped where it is, with the rights that its use needs.
            unsafe { entry(address).write_volatile(wanted) };
            address += GRANULE;
        }
        // SAFETY: the same tables again, so that no old entry is in use.
        unsafe {
            asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags));
        }
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

    /// `false` if the host has no large page there. What is accepted is zero: the TDX module clears it,
    /// and PVALIDATE does not. A page that was the guest's before, under another address, would have its
    /// old contents: the host chooses which.
    fn accept_page(self, address: u64, large: bool) -> Result<bool, Fatal> {
        match self {
            Self::Plain => Ok(true),
            Self::Snp(encryption) => {
                let mapped = mapped(address, encryption.c_bit);
                let done = snp::accept(mapped, large, encryption)?;
                if done {
                    clear(mapped, if large { GRANULE } else { PAGE });
                }
                Ok(done)
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
    if address < MAPPED_END {
        return address;
    }
    let granule = address & !(GRANULE - 1);
    let wanted = granule | 1 << c_bit | PRESENT | WRITABLE | LARGE | NO_EXECUTE;
    let entry = entry(LOW_MEMORY_END);
    // SAFETY: once rights are given, only this function changes the entry, nothing that Rust knows of is
    // mapped by it, and the old one is forgotten.
    unsafe {
        if entry.read_volatile() != wanted {
            entry.write_volatile(wanted);
            asm!("invlpg [{}]", in(reg) LOW_MEMORY_END, options(nostack, preserves_flags));
        }
    }
    LOW_MEMORY_END + address % GRANULE
}

/// Makes memory zero that the guest owns and that is mapped.
pub fn clear(address: u64, size: u64) {
    // SAFETY: the range has just been accepted, or has been added at launch and is not used: nothing that
    // Rust knows of is in it.
    unsafe { mem::clear(address as *mut u8, size as usize) };
}

/// Whether [`Memory::start`] has made the window shared. The C-bit is above all addresses there.
pub fn window_is_shared() -> bool {
    // SAFETY: an entry of the page tables.
    let entry = unsafe { entry(WINDOW).read_volatile() };
    (entry & !NO_EXECUTE) >> 32 == 0
}
