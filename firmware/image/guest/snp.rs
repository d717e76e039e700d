//! SEV-SNP from the guest's side: the GHCB MSR protocol (GHCB specification, section 2.3), page
//! validation (AMD64 APM volume 3, PVALIDATE).

use core::arch::asm;

use casemate_firmware_logic::cpuid::Encryption;
use casemate_firmware_logic::fatal::{Fatal, TERMINATION_SET};
use casemate_firmware_logic::layout::{CPUID, GRANULE, PAGE, WINDOW, WORK};

use crate::memory;

const MSR_GHCB: u32 = 0xc001_0130;

/// Codes of the MSR protocol, requests and their answers.
const SEV_INFO: (u64, u64) = (0x002, 0x001);
const FEATURES: (u64, u64) = (0x080, 0x081);
const TERMINATE: u64 = 0x100;
const REGISTER_GHCB: (u64, u64) = (0x012, 0x013);

/// The protocol versions that the host speaks must include this one.
const VERSION: u64 = 2;

/// Hypervisor features without which Linux does not run: SEV-SNP, and AP creation.
const NEEDED: u64 = 0b11;

/// Checks that nobody is above this guest in it, that the hypervisor speaks the protocol, and that
/// all agree on the C-bit that the page tables have.
pub fn start(c_bit: u32) -> Result<Encryption, Fatal> {
    let encryption = Encryption::from_page(cpuid_page())?;
    let info = request(SEV_INFO)?;
    let (most, least) = (info >> 48, info >> 32 & 0xffff);
    let features = request(FEATURES)? >> 12;
    if encryption.c_bit != c_bit
        || info >> 24 & 0xff != u64::from(c_bit)
        || !(least..=most).contains(&VERSION)
        || features & NEEDED != NEEDED
    {
        return Err(Fatal::Hypervisor);
    }
    if !at_vmpl0() {
        return Err(Fatal::Vmpl);
    }
    Ok(encryption)
}

/// Takes from VMPL1 the permissions on a page, of which it has none yet. Only VMPL0 can: a level
/// changes what those below it may do (AMD64 APM volume 3, RMPADJUST).
fn at_vmpl0() -> bool {
    const NONE_OF_VMPL1: u64 = 1;
    let result: u64;
    // SAFETY: the page is one of ours that was accepted, and stays so; nobody runs at VMPL1.
    unsafe {
        asm!(".byte 0xf3, 0x0f, 0x01, 0xfe", inout("rax") WORK => result, in("rcx") 0,
             in("rdx") NONE_OF_VMPL1, options(nostack));
    }
    result as u32 == 0
}

/// What CPUID says.
pub fn cpuid_page() -> &'static [u8; 4096] {
    // SAFETY: one of the launch pages: it is there, and nobody writes it.
    unsafe { &*(CPUID as *const [u8; 4096]) }
}

/// Tells the host why, and does not come back.
pub fn terminate(reason: Fatal) -> ! {
    loop {
        call(TERMINATE | u64::from(TERMINATION_SET) << 12 | (reason as u64) << 16);
    }
}

/// Makes the loader window's first page a GHCB (GHCB specification, section 2.6), for the log of the
/// development image; `false` if there is none yet: the page is not shared, or not accepted.
pub fn open_ghcb() -> bool {
    memory::window_is_shared() && request((REGISTER_GHCB.0 | WINDOW, REGISTER_GHCB.1)).is_ok()
}

/// Writes to a port by way of the GHCB (the same, sections 2.6 and 4.1.2). What the host makes of it
/// is not looked at.
pub fn write_port(port: u16, byte: u8) {
    const IOIO: u64 = 0x7b;
    const OUT_OF_A_BYTE: u64 = 1 << 4;
    // RAX; the exit code, and two words of information; a bit for each word that is valid; the
    // protocol's version, and a format of 0.
    let fields = [
        (0x1f8, u64::from(byte)),
        (0x390, IOIO),
        (0x398, u64::from(port) << 16 | OUT_OF_A_BYTE),
        (0x3a0, 0),
        (0x3f0, 1 << (0x1f8 / 8)),
        (0x3f8, 0b111 << (0x390 / 8 - 64)),
        (0xff8, VERSION << 16),
    ];
    for (offset, value) in fields {
        // SAFETY: the window's first page, which nobody else uses once the header has been copied.
        unsafe { ((WINDOW + offset) as *mut u64).write_volatile(value) };
    }
    call(WINDOW);
}

/// Accepts one page; `false` if the host has no large page there.
pub fn accept(address: u64, large: bool, encryption: Encryption) -> Result<bool, Fatal> {
    let done = validate(address, large)?;
    if done && encryption.touch {
        let size = if large { GRANULE } else { PAGE };
        (address..address + size).step_by(PAGE as usize).for_each(touch);
    }
    Ok(done)
}

/// Validates one page; `false` if the host has no large page there.
fn validate(address: u64, large: bool) -> Result<bool, Fatal> {
    const SIZE_MISMATCH: u32 = 6;
    let (result, unchanged): (u64, u8);
    // SAFETY: changes the state of a page that nobody uses yet: every page is accepted once, before
    // anything is put there.
    unsafe {
        asm!(".byte 0xf2, 0x0f, 0x01, 0xff", "setc {unchanged}", unchanged = out(reg_byte) unchanged,
             inout("rax") address => result, in("ecx") u32::from(large), in("edx") 1,
             options(nostack));
    }
    match (result as u32, unchanged) {
        (0, 0) => Ok(true),
        (SIZE_MISMATCH, _) if large => Ok(false),
        (0, _) => Err(Fatal::AcceptedTwice),
        _ => Err(Fatal::Accept),
    }
}

/// Reads both ends of a page, so that no stale line of it is left in a cache that does not keep up
/// with changes of encryption (CVE-2025-38560).
fn touch(address: u64) {
    for byte in [address, address + PAGE - 1] {
        // SAFETY: the page has just been validated, and is mapped.
        unsafe { (byte as *const u8).read_volatile() };
    }
}

/// A request whose answer must have the code that belongs to it.
fn request((code, answer): (u64, u64)) -> Result<u64, Fatal> {
    let value = call(code);
    if value & 0xfff == answer { Ok(value) } else { Err(Fatal::Hypervisor) }
}

/// Writes the GHCB MSR, leaves to the hypervisor, and reads the MSR.
fn call(value: u64) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the hypervisor sees the MSR only; VMGEXIT changes nothing else of an SEV-ES guest.
    unsafe {
        asm!("wrmsr", "rep vmmcall", "rdmsr", in("ecx") MSR_GHCB,
             inout("eax") value as u32 => low, inout("edx") (value >> 32) as u32 => high,
             options(nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}
