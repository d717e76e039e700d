//! TDX from the guest's side: calls of the TDX module (Intel TDX module ABI, "Guest-Side (TDCALL)
//! Interface Functions"), and the only one of the host (GHCI, TDG.VP.VMCALL<ReportFatalError>).

use core::arch::asm;

use casemate_firmware_logic::config::Config;
use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::sha384;

const VP_INFO: u64 = 1;
const RTMR_EXTEND: u64 = 2;
const PAGE_ACCEPT: u64 = 6;

/// Attributes of a trust domain: the host may read it; a missing page is no exception in it.
const DEBUG: u64 = 1;
const SEPT_VE_DISABLE: u64 = 1 << 28;

/// A trust domain, as the TDX module has it.
#[derive(Clone, Copy)]
pub struct Domain {
    /// Bits of its guest-physical addresses. The highest says that a page is shared.
    pub address_bits: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
}

/// What the TDX module answers: RAX, and what follows from the call.
struct Answer {
    status: u64,
    rcx: u64,
    rdx: u64,
    r8: u64,
}

/// What this trust domain is. One that the host can read must have been measured as one for
/// development.
pub fn start(config: &Config) -> Result<Domain, Fatal> {
    // Leaf 0x21 is the TDX module's, whatever the host says.
    let leaf = core::arch::x86_64::__cpuid_count(0x21, 0);
    if [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() != b"IntelTDX    " {
        return Err(Fatal::Platform);
    }
    let info = tdcall(VP_INFO, 0, 0);
    if info.status != 0 {
        return Err(Fatal::Platform);
    }
    let development = config.flags.unmeasured_payload;
    if info.rdx & SEPT_VE_DISABLE == 0 || info.rdx & DEBUG != 0 && !development {
        return Err(Fatal::Attributes);
    }
    let address_bits = info.rcx as u32 & 0x3f;
    if !matches!(address_bits, 48 | 52) {
        return Err(Fatal::Platform);
    }
    Ok(Domain { address_bits, vcpus: info.r8 as u32 })
}

/// Accepts one page; `false` if the host has no large page there.
pub fn accept(address: u64, large: bool) -> Result<bool, Fatal> {
    const BUSY: u64 = 0x8000_0200;
    const SIZE_MISMATCH: u64 = 0xc000_0b0b;
    const ALREADY_ACCEPTED: u64 = 0x0000_0b0a;
    loop {
        match tdcall(PAGE_ACCEPT, address | u64::from(large), 0).status >> 32 {
            0 => return Ok(true),
            BUSY => {}
            SIZE_MISMATCH if large => return Ok(false),
            ALREADY_ACCEPTED => return Err(Fatal::AcceptedTwice),
            _ => return Err(Fatal::Accept),
        }
    }
}

/// Extends a run-time measurement register by what has this SHA-256 digest.
pub fn extend(register: u64, digest: &[u8; 32]) -> Result<(), Fatal> {
    #[repr(align(64))]
    struct Event([u8; 48]);
    let event = Event(sha384::of_digest(digest));
    // The compiler does not know that the module reads it.
    let address = core::hint::black_box(&raw const event.0) as u64;
    let answer = tdcall(RTMR_EXTEND, address, register);
    if answer.status == 0 { Ok(()) } else { Err(Fatal::Measure) }
}

fn tdcall(leaf: u64, rcx: u64, rdx: u64) -> Answer {
    let (status, out_rcx, out_rdx, r8);
    // SAFETY: of the leaves above, one accepts memory that nobody uses yet, and the others write
    // registers only; one reads memory, and is not told otherwise (no `nomem`).
    unsafe {
        asm!(".byte 0x66, 0x0f, 0x01, 0xcc", inout("rax") leaf => status,
             inout("rcx") rcx => out_rcx, inout("rdx") rdx => out_rdx, out("r8") r8,
             out("r9") _, out("r10") _, out("r11") _, options(nostack));
    }
    Answer { status, rcx: out_rcx, rdx: out_rdx, r8 }
}

/// Writes to a port (GHCI, TDG.VP.VMCALL<Instruction.IO>), for the log of the development image. What
/// the host makes of it is not looked at.
pub fn write_port(port: u16, byte: u8) {
    const IO: u64 = 30;
    const WRITE: u64 = 1;
    /// R10 to R15.
    const EXPOSED: u64 = 0xfc00;
    // SAFETY: a device's port; the registers that the host sees and may change are those named.
    unsafe {
        asm!(".byte 0x66, 0x0f, 0x01, 0xcc", inout("rax") 0_u64 => _, inout("rcx") EXPOSED => _,
             inout("r10") 0_u64 => _, inout("r11") IO => _, inout("r12") 1_u64 => _,
             inout("r13") WRITE => _, inout("r14") u64::from(port) => _,
             inout("r15") u64::from(byte) => _, options(nostack));
    }
}

/// Tells the host why, and does not come back. All registers that the host sees are written here:
/// the code in R12, and 16 bytes of text in R14 and R15.
pub fn terminate(reason: Fatal) -> ! {
    const REPORT_FATAL_ERROR: u64 = 0x1_0003;
    /// RDX, RBX, RSI, RDI, R8 to R15.
    const EXPOSED: u64 = 0xffcc;
    // SAFETY: leaves for good; should the host come back, again.
    unsafe {
        asm!("2:", "xor edx, edx", "xor ebx, ebx", "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d",
             "xor r13d, r13d", "xor eax, eax", "mov ecx, {exposed}", "mov r11d, {call}",
             ".byte 0x66, 0x0f, 0x01, 0xcc", "jmp 2b",
             exposed = const EXPOSED, call = const REPORT_FATAL_ERROR, in("r12") reason.tdx_code(),
             in("r14") u64::from_le_bytes(*b"Casemate"), in("r15") u64::from_le_bytes(*b" stopped"),
             in("rsi") 0, in("rdi") 0, options(noreturn))
    }
}
