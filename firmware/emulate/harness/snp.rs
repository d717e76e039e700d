//! SEV-SNP: PVALIDATE, RMPADJUST (AMD64 APM volume 3), and the GHCB MSR protocol (GHCB
//! specification, section 2.3) of a host that knows nothing else.

use casemate_firmware_logic::fatal::{Fatal, TERMINATION_SET};
use casemate_firmware_logic::layout::{GRANULE, PAGE};
use unicorn_engine::RegisterX86;

use super::End;
use super::engine::{Engine, fill};
use super::machine::Machine;
use super::processor::walk;

pub(super) const GHCB: u32 = 0xc001_0130;
pub(super) const STATUS: u32 = 0xc001_0131;

const DONE: u32 = 0;
const FAIL_INPUT: u32 = 1;
const FAIL_PERMISSION: u32 = 2;
const FAIL_SIZE_MISMATCH: u32 = 6;

pub(super) fn pvalidate(engine: &mut Engine<'_>) -> Result<(), String> {
    let [rax, ecx, edx] = operands(engine);
    let large = ecx & 1 != 0;
    let (address, private, _) = walk(engine, rax)?;
    let size = if large { GRANULE } else { PAGE };
    if !private || edx != 1 || ecx > 1 || address % size != 0 {
        return Err(format!("PVALIDATE of {address:#x} with ECX {ecx:#x}, EDX {edx:#x}"));
    }
    let machine = engine.get_data_mut();
    let honest = if !machine.is_memory(address) {
        (FAIL_INPUT, false)
    } else if large && !machine.host.large {
        (FAIL_SIZE_MISMATCH, false)
    } else {
        (DONE, false)
    };
    let answer = (machine.host.validate)(address, large, honest);
    if answer == (DONE, false) {
        machine.accept(address, size / PAGE)?;
        for page in (address..address + size).step_by(usize::try_from(PAGE).unwrap()) {
            fill(engine, page);
        }
    }
    done(engine, answer);
    Ok(())
}

/// The image may ask whether it is at VMPL0, by giving a page of its own to VMPL1.
pub(super) fn rmpadjust(engine: &mut Engine<'_>) -> Result<(), String> {
    let [rax, _, _] = operands(engine);
    let (address, private, _) = walk(engine, rax)?;
    let machine = engine.get_data();
    if !private || !machine.is_accepted(address) {
        return Err(format!("RMPADJUST of {address:#x}, which is not the guest's own"));
    }
    let answer = if machine.host.vmpl == 0 { DONE } else { FAIL_PERMISSION };
    done(engine, (answer, false));
    Ok(())
}

fn operands(engine: &Engine<'_>) -> [u64; 3] {
    [RegisterX86::RAX, RegisterX86::RCX, RegisterX86::RDX]
        .map(|register| engine.reg_read(register).unwrap())
}

fn done(engine: &mut Engine<'_>, (eax, carry): (u32, bool)) {
    let flags = engine.reg_read(RegisterX86::RFLAGS).unwrap();
    engine.reg_write(RegisterX86::RAX, eax.into()).unwrap();
    engine.reg_write(RegisterX86::RFLAGS, flags & !1 | u64::from(carry)).unwrap();
}

pub(super) fn vmgexit(engine: &mut Engine<'_>) -> Result<(), String> {
    let machine = engine.get_data_mut();
    let request = machine.ghcb;
    machine.counts.exits += 1;
    let honest = match request & 0xfff {
        // To be held, by a vCPU other than the first.
        0x006 if machine.vcpu > 0 => {
            machine.counts.holds += 1;
            1 << 12 | 0x007
        }
        // Versions 1 to 2 and the C-bit; SEV-SNP and AP creation.
        0x002 => 2 << 48 | 1 << 32 | u64::from(Machine::C_BIT) << 24 | 0x001,
        0x080 => 0b11 << 12 | 0x081,
        0x100 => return terminated(machine, request),
        _ => return Err(format!("request {request:#x} by GHCB MSR")),
    };
    machine.ghcb = (machine.host.msr)(request, honest);
    Ok(())
}

fn terminated(machine: &mut Machine, request: u64) -> Result<(), String> {
    let [_, set, reason, rest @ ..] = request.to_le_bytes();
    let fatal = Fatal::from_code(reason);
    let (Some(fatal), true) = (fatal, set >> 4 == TERMINATION_SET && rest == [0; 5]) else {
        return Err(format!("termination request {request:#x}"));
    };
    if machine.counts.stops == machine.host.resumes {
        machine.finish(End::Stopped(fatal));
    }
    machine.counts.stops += 1;
    Ok(())
}
