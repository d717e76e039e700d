//! Unicorn with a guest in it: memory and the state in which vCPUs start, then a run to the end.

use casemate_firmware_logic::layout::{
    ECAM, IMAGE, KERNEL, LOW_MEMORY_END, PAGE, WINDOW, WINDOW_END,
};
use casemate_launch::{Contents, InitialVcpu, LaunchPlan, PageKind, PlatformKind};
use unicorn_engine::{Arch, Mode, Permission, RegisterX86, TlbType, Unicorn, X86Mmr};

use super::End;
use super::host::{Fresh, Host};
use super::machine::{MOST_MEMORY, Machine};
use super::processor::{count, hook, walk};

pub(super) type Engine<'a> = Unicorn<'a, Machine>;

/// The 64-bit entry.
const ENTRY: u64 = KERNEL + 0x200;

/// Base of CS in real mode, until it is loaded.
pub(super) const REAL_MODE_BASE: u64 = 0xffff_0000;

pub(super) const PE: u64 = 1;
pub(super) const PG: u64 = 1 << 31;
pub(super) const EFER: u32 = 0xc000_0080;

/// A guest with its launch pages, before its first instruction.
pub(super) fn launch(plan: &LaunchPlan, host: Host) -> Engine<'static> {
    let machine = Machine::new(plan, host);
    let mut engine = Unicorn::new_with_data(Arch::X86, Mode::MODE_64, machine).unwrap();
    engine.ctl_tlb_type(TlbType::VIRTUAL).unwrap();
    let memory = [(0, LOW_MEMORY_END), (4 << 30, MOST_MEMORY)];
    for (start, end) in memory.into_iter().chain([(WINDOW, WINDOW_END), (IMAGE, 4 << 30)]) {
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
            (_, PageKind::Unmeasured | PageKind::Zero | PageKind::Secrets) => {
                for page in import.range.page_addresses() {
                    fill(&mut engine, page.0);
                }
            }
            (Contents::Bytes(bytes), _) => engine.mem_write(start, bytes).unwrap(),
            (Contents::Zeroes, _) => {}
        }
    }
    hook(&mut engine);
    if engine.get_data().host.count {
        count(&mut engine);
    }
    engine
}

/// Puts into the page at `address`, which is new to the guest, what its host makes it hold.
pub(super) fn fill(engine: &mut Engine<'_>, address: u64) {
    let size = usize::try_from(PAGE).unwrap();
    let page = match engine.get_data().host.fresh {
        Fresh::Noise => noise(address, size),
        Fresh::Byte(byte) => vec![byte; size],
        Fresh::MovedFrom(old) => engine.mem_read_as_vec(old, size).unwrap(),
    };
    engine.mem_write(address, &page).unwrap();
}

/// Bytes that look like none of anything, and differ from page to page.
fn noise(address: u64, size: usize) -> Vec<u8> {
    let words =
        (0..size as u64 / 8).map(|at| (address + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_be_bytes).collect()
}

/// Brings the engine into the state in which a vCPU starts.
pub(super) fn start(engine: &mut Engine<'_>, plan: &LaunchPlan, vcpu: u32) {
    let machine = engine.get_data_mut();
    machine.end = None;
    machine.vcpu = vcpu;
    machine.starting = true;
    match machine.platform {
        PlatformKind::Tdx => start_protected(engine),
        PlatformKind::Plain | PlatformKind::Snp => {
            start_real(engine, &plan.vcpus[usize::try_from(vcpu).unwrap()]);
        }
    }
    engine.get_data_mut().starting = false;
}

/// Goes on for so many instructions, or to the end.
pub(super) fn go(engine: &mut Engine<'_>, instructions: usize) -> End {
    let machine = engine.get_data_mut();
    if machine.end.is_none() && instructions > 0 {
        let at = engine.pc_read().unwrap();
        let result = engine.emu_start(at, ENTRY, 0, instructions);
        let at = engine.pc_read().unwrap();
        let executable = walk(engine, ENTRY).is_ok_and(|(_, _, rights)| rights.execute);
        let machine = engine.get_data_mut();
        match result {
            Err(error) => machine.finish(End::Broken(format!("{error:?} at {at:#x}"))),
            Ok(()) if at == ENTRY && executable => machine.finish(End::Kernel),
            Ok(()) if at == ENTRY => machine.finish(End::Broken("the kernel may not run".into())),
            Ok(()) => {}
        }
    }
    engine.get_data().end.clone().unwrap_or(End::Running)
}

/// 32-bit protected mode, as a trust domain's vCPU starts (Intel TDX module base specification,
/// "Initial State of Guest GPRs" and of control registers).
fn start_protected(engine: &mut Engine<'_>) {
    leave_long_mode(engine, 0x21);
    write_msr(engine, EFER, 0x901);
    let table = X86Mmr { selector: 0, base: 0, limit: 0xffff, flags: 0 };
    write_table(engine, RegisterX86::GDTR, table);
    write_table(engine, RegisterX86::IDTR, X86Mmr { limit: 0, ..table });
    let machine = engine.get_data();
    let (bits, vcpu) = (machine.host.address_bits.into(), machine.vcpu.into());
    for (register, value) in [
        (RegisterX86::CR4, 0x40),
        (RegisterX86::RBX, bits),
        (RegisterX86::RSI, vcpu),
        (RegisterX86::RCX, 0x1234_5678),
        (RegisterX86::R8, 0x1234_5678),
        (RegisterX86::RDX, 0x806f8),
        (RegisterX86::RIP, 0xffff_fff0),
    ] {
        engine.reg_write(register, value).unwrap();
    }
}

/// Real mode, in the last 64 KiB below 4 GiB: at the reset vector (AMD64 APM volume 2, section 14.1) or
/// where else the plan says. Unicorn sets a base of CS only when an instruction loads CS: so one does,
/// from a page that is there for that long.
fn start_real(engine: &mut Engine<'_>, vcpu: &InitialVcpu) {
    assert_eq!(vcpu.cs.base, REAL_MODE_BASE);
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
    let (base, limit) = (vcpu.idtr.base, vcpu.idtr.limit);
    write_table(engine, RegisterX86::IDTR, X86Mmr { base, limit, ..table });
    engine.mem_unmap(ECAM, size).unwrap();
    for (register, value) in
        [(RegisterX86::CR0, vcpu.cr0), (RegisterX86::RDX, vcpu.rdx), (RegisterX86::RIP, vcpu.rip)]
    {
        engine.reg_write(register, value).unwrap();
    }
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
