//! What a processor does that Unicorn does not, or does otherwise: address translation with private and
//! shared memory, exceptions, instructions of SEV-SNP and TDX. Unicorn calls back for every page that is
//! not in its TLB, for instructions that it does not know, and for those that are asked for by address.

use casemate_firmware_logic::layout::{GRANULE, IMAGE, KERNEL, PAGE, WINDOW, WINDOW_END};
use casemate_launch::PlatformKind;
use unicorn_engine::{HookType, MemType, Permission, RegisterX86, TlbEntry, X86Mmr};

use super::engine::{EFER, Engine, PE, PG, REAL_MODE_BASE};
use super::machine::Access;
use super::{End, snp, tdx};

/// The exception of instructions that there are not.
const UNDEFINED: u8 = 6;

/// The exception of MSRs that there are not.
const PROTECTION: u8 = 13;

/// Has Unicorn call back.
pub(super) fn hook(engine: &mut Engine<'_>) {
    engine.add_tlb_hook(1, 0, translate).unwrap();
    let offset = |address: u64| address - WINDOW;
    let read = move |engine: &mut Engine<'_>, kind: MemType, address: u64, size, value: i64| {
        if kind == MemType::READ {
            return true;
        }
        for (byte, at) in value.to_le_bytes().into_iter().take(size).zip(address..) {
            let machine = engine.get_data_mut();
            machine.read_window(offset(at));
            let now = (machine.host.after_read)(offset(at), byte);
            if now != byte {
                engine.mem_write(at, &[now]).unwrap();
            }
        }
        true
    };
    // Only where there is a hook before reads are all of them seen.
    let reads = HookType::MEM_READ | HookType::MEM_READ_AFTER;
    engine.add_mem_hook(reads, WINDOW, WINDOW_END - 1, read).unwrap();
    engine.add_insn_invalid_hook(unknown).unwrap();
    let exception = |engine: &mut Engine<'_>, vector| {
        // Unicorn says so of every instruction that it does not know, once `unknown` has seen it.
        if vector != u32::from(UNDEFINED) {
            raise(engine, u8::try_from(vector).unwrap());
        }
    };
    engine.add_intr_hook(exception).unwrap();
    // Wherever there may be RDMSR, WRMSR or CPUID.
    let image = engine.mem_read_as_vec(IMAGE, usize::try_from((4 << 30) - IMAGE).unwrap()).unwrap();
    for (at, pair) in (IMAGE..).zip(image.windows(2)) {
        if matches!(pair, [0x0f, 0x30 | 0x32 | 0xa2]) {
            engine.add_code_hook(at, at, |engine, at, _| intercepted(engine, at)).unwrap();
        }
    }
}

/// Counts instructions.
pub(super) fn count(engine: &mut Engine<'_>) {
    let mut last = 0;
    let step = move |engine: &mut Engine<'_>, at, _| {
        let counts = &mut engine.get_data_mut().counts;
        counts.steps += 1;
        counts.instructions += u64::from(at != last);
        last = at;
    };
    engine.add_code_hook(1, 0, step).unwrap();
}

/// An instruction that Unicorn does not know; none of them is shorter than three bytes, and all that
/// the image may have, four.
fn unknown(engine: &mut Engine<'_>) -> bool {
    let real = engine.reg_read(RegisterX86::CR0).unwrap() & PE == 0;
    let base = if real { REAL_MODE_BASE } else { 0 };
    let at = base + engine.pc_read().unwrap();
    let code: [u8; 4] = engine.mem_read_as_vec(at, 4).unwrap().try_into().unwrap();
    let platform = engine.get_data().platform;
    let done = match (platform, code) {
        (PlatformKind::Snp, [0xf2, 0x0f, 0x01, 0xff]) => snp::pvalidate(engine),
        (PlatformKind::Snp, [0xf3, 0x0f, 0x01, 0xfe]) => snp::rmpadjust(engine),
        (PlatformKind::Snp, [0xf3, 0x0f, 0x01, 0xd9]) => snp::vmgexit(engine),
        (PlatformKind::Tdx, [0x66, 0x0f, 0x01, 0xcc]) => tdx::tdcall(engine),
        _ => {
            raise(engine, UNDEFINED);
            return true;
        }
    };
    skip(engine, 4);
    if let Err(wrong) = done {
        engine.get_data_mut().finish(End::Broken(wrong));
    }
    if engine.get_data().end.is_some() {
        engine.emu_stop().unwrap();
    }
    true
}

/// RDMSR, WRMSR or CPUID.
fn intercepted(engine: &mut Engine<'_>, at: u64) {
    let code = engine.mem_read_as_vec(at, 2).unwrap()[1];
    let [eax, ecx, edx] = [RegisterX86::RAX, RegisterX86::RCX, RegisterX86::RDX]
        .map(|register| engine.reg_read(register).unwrap() & 0xffff_ffff);
    let platform = engine.get_data().platform;
    let answer = match (code, platform, u32::try_from(ecx).unwrap()) {
        // Unicorn's own.
        (0x32, _, EFER) => return,
        (0x30, PlatformKind::Plain | PlatformKind::Snp, EFER) => return,
        (0xa2, PlatformKind::Plain, _) => return,
        (0x30, PlatformKind::Snp, snp::GHCB) => {
            engine.get_data_mut().ghcb = edx << 32 | eax;
            None
        }
        (0x32, PlatformKind::Snp, snp::GHCB) => Some(engine.get_data().ghcb),
        (0x32, PlatformKind::Snp, snp::STATUS) => Some(engine.get_data().host.sev_status),
        (0xa2, PlatformKind::Tdx, subleaf) => return tdx::cpuid(engine, eax, subleaf),
        _ => {
            // Somebody else's MSR, or one that is trapped: #GP, or #VC, or #VE.
            raise(engine, PROTECTION);
            return;
        }
    };
    if let Some(answer) = answer {
        engine.reg_write(RegisterX86::RAX, answer & 0xffff_ffff).unwrap();
        engine.reg_write(RegisterX86::RDX, answer >> 32).unwrap();
    }
    skip(engine, 2);
}

/// Goes on behind an instruction of so many bytes.
pub(super) fn skip(engine: &mut Engine<'_>, bytes: u64) {
    let at = engine.pc_read().unwrap();
    engine.set_pc(at + bytes).unwrap();
}

/// What Unicorn asks for when a page is not in its TLB.
fn translate(engine: &mut Engine<'_>, address: u64, kind: MemType) -> Option<TlbEntry> {
    if engine.get_data().starting {
        return Some(TlbEntry { paddr: address, perms: Permission::ALL });
    }
    let access = match kind {
        MemType::WRITE => Access::Write,
        MemType::FETCH => Access::Execute,
        _ => Access::Read,
    };
    let found = walk(engine, address).and_then(|(paddr, private, rights)| {
        let allowed = match access {
            Access::Read => true,
            Access::Write => rights.write,
            // Unicorn looks up where a run is to end when it goes on; `go` checks it at the end.
            Access::Execute => rights.execute || paddr == KERNEL,
        };
        if !allowed {
            return Err(format!("{access:?} of {paddr:#x}, which is not mapped for that"));
        }
        if access == Access::Read && (WINDOW..WINDOW_END).contains(&paddr) {
            check_rights(engine)?;
        }
        engine.get_data_mut().access(paddr, private, access)?;
        Ok(paddr)
    });
    match found {
        // One permission at a time, so that each kind of access is seen once for each page.
        Ok(paddr) => Some(TlbEntry {
            paddr,
            perms: match access {
                Access::Read => Permission::READ,
                Access::Write => Permission::READ | Permission::WRITE,
                Access::Execute => Permission::READ | Permission::EXEC,
            },
        }),
        Err(wrong) => {
            engine.get_data_mut().finish(End::Broken(wrong));
            None
        }
    }
}

/// What may be done with mapped memory beside reading it.
#[derive(Clone, Copy)]
pub(super) struct Rights {
    write: bool,
    pub(super) execute: bool,
}

/// From the first look into the window on, nothing that is mapped is both writable and executable.
fn check_rights(engine: &Engine<'_>) -> Result<(), String> {
    let granules = (0..4 << 30).step_by(usize::try_from(GRANULE).unwrap());
    for (address, rights) in
        granules.filter_map(|address| Some((address, walk(engine, address).ok()?.2)))
    {
        if rights.write && rights.execute {
            return Err(format!("{address:#x} is writable and executable"));
        }
    }
    Ok(())
}

/// Where an address leads, whether to private memory, and what may be done there (AMD64 APM volume 2,
/// sections 5.3 and 5.6). Page tables are private, whatever entries that lead to them say, as is
/// everything without paging.
pub(super) fn walk(engine: &Engine<'_>, address: u64) -> Result<(u64, bool, Rights), String> {
    const PRESENT: u64 = 1;
    const WRITABLE: u64 = 1 << 1;
    const LARGE: u64 = 1 << 7;
    const NO_EXECUTE: u64 = 1 << 63;
    const WRITE_PROTECT: u64 = 1 << 16;
    let (bit, set) = engine.get_data().private_bit();
    let mut rights = Rights { write: true, execute: true };
    let cr0 = engine.reg_read(RegisterX86::CR0).unwrap();
    if cr0 & PG == 0 {
        return Ok((address & 0xffff_ffff, true, rights));
    }
    let addresses = ((1 << 52) - PAGE) & !bit;
    let mut table = engine.reg_read(RegisterX86::CR3).unwrap();
    for shift in [39, 30, 21, 12] {
        let table_at = table & addresses;
        if !engine.get_data().is_accepted(table_at) {
            return Err(format!("the page table at {table_at:#x} is not accepted"));
        }
        let entry = engine.mem_read_as_vec(table_at + (address >> shift & 511) * 8, 8).unwrap();
        let entry = u64::from_le_bytes(entry.try_into().unwrap());
        if entry & PRESENT == 0 {
            return Err(format!("nothing is mapped at {address:#x}"));
        }
        rights.write &= entry & WRITABLE != 0 || cr0 & WRITE_PROTECT == 0;
        rights.execute &= entry & NO_EXECUTE == 0;
        if shift == 12 || entry & LARGE != 0 {
            let within = (1 << shift) - 1;
            let private = bit == 0 || (entry & bit != 0) == set;
            return Ok((entry & addresses & !within | address & within, private, rights));
        }
        table = entry;
    }
    unreachable!("the last level maps a page")
}

/// An exception or interrupt, as the processor delivers it (AMD64 APM volume 2, sections 8.6 and 8.9):
/// by a table of interrupts, which is the image's, with a stack of its own for all; or, where the table is
/// too short for it, by the end of the guest.
pub(super) fn raise(engine: &mut Engine<'_>, vector: u8) {
    let table = read_table(engine, RegisterX86::IDTR);
    let cr0 = engine.reg_read(RegisterX86::CR0).unwrap();
    let size = match (cr0 & PE != 0, cr0 & PG != 0) {
        (false, _) => 4,
        (true, false) => 8,
        (true, true) => 16,
    };
    let end = (u64::from(vector) + 1) * size;
    if end > u64::from(table.limit) + 1 {
        finish(engine, End::Shutdown);
        return;
    }
    let elsewhere = || End::Broken(format!("vector {vector} by the table at {:#x}", table.base));
    if size < 16 || table.base == 0 || !engine.get_data().is_accepted(table.base) {
        finish(engine, elsewhere());
        return;
    }
    let at = |engine: &Engine<'_>, address| {
        u64::from_le_bytes(engine.mem_read_as_vec(address, 8).unwrap().try_into().unwrap())
    };
    let (low, high) = (at(engine, table.base + end - 16), at(engine, table.base + end - 8));
    let handler = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    if !(IMAGE..4 << 30).contains(&handler) {
        finish(engine, elsewhere());
        return;
    }
    let task = read_table(engine, RegisterX86::TR);
    let stack = at(engine, task.base + 0x1c + 8 * (low >> 32 & 7));
    let flags = engine.reg_read(RegisterX86::RFLAGS).unwrap();
    let old =
        [engine.pc_read().unwrap(), 0x10, flags, engine.reg_read(RegisterX86::RSP).unwrap(), 0x18];
    let error = [0];
    let error = if matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30) { &error[..] } else { &[] };
    let frame: Vec<u8> = error.iter().chain(&old).flat_map(|word| word.to_le_bytes()).collect();
    let stack = (stack & !15) - frame.len() as u64;
    engine.mem_write(stack, &frame).unwrap();
    engine.reg_write(RegisterX86::RSP, stack).unwrap();
    engine.reg_write(RegisterX86::RFLAGS, flags & !(1 << 9)).unwrap();
    engine.set_pc(handler).unwrap();
}

fn finish(engine: &mut Engine<'_>, end: End) {
    engine.get_data_mut().finish(end);
    engine.emu_stop().unwrap();
}

/// A register that holds the place of a table.
#[expect(unsafe_code, reason = "the safe call gives too small a buffer")]
fn read_table(engine: &Engine<'_>, register: RegisterX86) -> X86Mmr {
    let mut table = X86Mmr { selector: 0, base: 0, limit: 0, flags: 0 };
    // SAFETY: for these registers Unicorn writes a `uc_x86_mmr`, of which this is the layout.
    let result = unsafe {
        unicorn_engine::ffi::uc_reg_read(
            engine.get_handle(),
            register as i32,
            (&raw mut table).cast(),
        )
    };
    assert_eq!(result, unicorn_engine::uc_error::OK);
    table
}
