//! Unicorn with a guest in it: memory and the state in which vCPUs start, then a run to the end.

use casemate_firmware::layout::{ECAM, IMAGE, KERNEL, LOW_MEMORY_END, PAGE, WINDOW, WINDOW_END};
use casemate_launch::{Contents, LaunchPlan, PageKind, PlatformKind};
use unicorn_engine::{Arch, Mode, Permission, RegisterX86, TlbType, Unicorn, X86Mmr};

use super::End;
use super::host::Host;
use super::machine::Machine;
use super::processor::{count, hook, raise};

pub(super) type Engine<'a> = Unicorn<'a, Machine>;

/// The 64-bit entry.
const ENTRY: u64 = KERNEL + 0x200;

/// More instructions than any run needs: what hashing in software takes for each byte of payloads,
/// and a constant.
const MOST_INSTRUCTIONS: usize = 50_000_000;

const PE: u64 = 1;
pub(super) const PG: u64 = 1 << 31;
pub(super) const EFER: u32 = 0xc000_0080;

/// A guest with its launch pages, before its first instruction.
pub(super) fn launch(plan: &LaunchPlan, host: Host) -> Engine<'static> {
    let machine = Machine::new(plan, host);
    let mut engine = Unicorn::new_with_data(Arch::X86, Mode::MODE_64, machine).unwrap();
    engine.ctl_tlb_type(TlbType::VIRTUAL).unwrap();
    for (start, end) in [(0, LOW_MEMORY_END), (WINDOW, WINDOW_END), (IMAGE, 4 << 30)] {
        let size = usize::try_from(end - start).unwrap();
        engine.mem_map(start, size, Permission::ALL).unwrap();
    }
    for import in &plan.imports {
        let start = import.range.start().0;
        match (&import.contents, import.kind) {
            (_, PageKind::Cpuid) => {
                let page = engine.get_data().host.cpuid.clone();
                engine.mem_write(start, &page).unwrap();
            }
            (Contents::Bytes(bytes), _) => engine.mem_write(start, bytes).unwrap(),
            (Contents::Zeroes, _) => {}
        }
    }
    hook(&mut engine);
    if engine.get_data().host.count {
        count(&mut engine);
    }
    match engine.get_data().platform {
        PlatformKind::Tdx => start_protected(&mut engine),
        PlatformKind::Plain | PlatformKind::Snp => start_real(&mut engine),
    }
    engine.get_data_mut().starting = false;
    engine
}

/// Runs to the end.
pub(super) fn run(engine: &mut Engine<'_>) -> End {
    if let Some((instructions, vector)) = engine.get_data().host.inject {
        go(engine, instructions);
        if engine.get_data().end.is_none() && engine.pc_read().unwrap() != ENTRY {
            raise(engine, vector);
        }
    }
    go(engine, MOST_INSTRUCTIONS);
    if engine.pc_read().unwrap() == ENTRY {
        engine.get_data_mut().finish(End::Kernel);
    }
    let endless = End::Broken(format!("no end within {MOST_INSTRUCTIONS} instructions"));
    engine.get_data().end.clone().unwrap_or(endless)
}

/// Goes on for so many instructions, or to the end.
fn go(engine: &mut Engine<'_>, instructions: usize) {
    if engine.get_data().end.is_some() || instructions == 0 {
        return;
    }
    let at = engine.pc_read().unwrap();
    if let Err(error) = engine.emu_start(at, ENTRY, 0, instructions) {
        let at = engine.pc_read().unwrap();
        engine.get_data_mut().finish(End::Broken(format!("{error:?} at {at:#x}")));
    }
}

/// 32-bit protected mode, as a trust domain's vCPU starts (Intel TDX module base specification,
/// "Initial State of Guest GPRs" and of control registers).
fn start_protected(engine: &mut Engine<'_>) {
    leave_long_mode(engine, 0x21);
    write_msr(engine, EFER, 0x901);
    let host = &engine.get_data().host;
    let bits = host.address_bits.into();
    for (register, value) in [
        (RegisterX86::CR4, 0x40),
        (RegisterX86::RBX, bits),
        (RegisterX86::RCX, 0x1234_5678),
        (RegisterX86::R8, 0x1234_5678),
        (RegisterX86::RDX, 0x806f8),
        (RegisterX86::RIP, 0xffff_fff0),
    ] {
        engine.reg_write(register, value).unwrap();
    }
}

/// Real mode at 4 GiB - 16 (AMD64 APM volume 2, section 14.1). Unicorn sets a base of CS only when
/// an instruction loads CS: so one does, from a page that is there for that long.
fn start_real(engine: &mut Engine<'_>) {
    leave_long_mode(engine, PE);
    // Code, 16 bits, base 0xffff0000.
    let descriptor = 0xff00_9bff_0000_ffff_u64.to_le_bytes();
    // ljmp $8, $0xfff0
    let jump = [0xea, 0xf0, 0xff, 0, 0, 8, 0];
    let size = usize::try_from(PAGE).unwrap();
    engine.mem_map(ECAM, size, Permission::ALL).unwrap();
    engine.mem_write(ECAM + 8, &descriptor).unwrap();
    engine.mem_write(ECAM + 16, &jump).unwrap();
    let table = X86Mmr { selector: 0, base: ECAM, limit: 15, flags: 0 };
    write_table(engine, RegisterX86::GDTR, table);
    engine.emu_start(ECAM + 16, 0xffff_fff0, 0, 1).unwrap();
    write_table(engine, RegisterX86::GDTR, X86Mmr { base: 0, limit: 0xffff, ..table });
    write_table(engine, RegisterX86::IDTR, X86Mmr { base: 0, limit: 0x3ff, ..table });
    engine.mem_unmap(ECAM, size).unwrap();
    engine.reg_write(RegisterX86::CR0, 0x10).unwrap();
}

/// Unicorn starts in long mode, of a kind without paging. It leaves that with the bits that a program
/// would use.
fn leave_long_mode(engine: &mut Engine<'_>, cr0: u64) {
    for (register, value) in [
        (RegisterX86::CR4, 0x20),
        (RegisterX86::CR0, PG | PE),
        (RegisterX86::CR0, cr0),
        (RegisterX86::CR4, 0),
    ] {
        engine.reg_write(register, value).unwrap();
    }
    write_msr(engine, EFER, 0);
}

fn write_msr(engine: &mut Engine<'_>, msr: u32, value: u64) {
    let bytes = [u64::from(msr).to_le_bytes(), value.to_le_bytes()];
    engine.reg_write_long(RegisterX86::MSR, bytes.as_flattened()).unwrap();
}

fn write_table(engine: &mut Engine<'_>, register: RegisterX86, table: X86Mmr) {
    let limit = u64::from(table.limit) | u64::from(table.flags) << 32;
    let bytes = [table.selector, table.base, limit].map(u64::to_le_bytes);
    engine.reg_write_long(register, bytes.as_flattened()).unwrap();
}
