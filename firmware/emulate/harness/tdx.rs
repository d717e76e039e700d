//! TDX: the TDX module's answers to TDCALL (Intel TDX module ABI, "Guest-Side (TDCALL) Interface
//! Functions").

use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{GRANULE, PAGE};
use casemate_launch::Digest384;
use unicorn_engine::RegisterX86;

use super::End;
use super::engine::Engine;
use super::host::Answer;
use super::machine::Machine;
use super::processor::{skip, walk};

/// TDG.VP.VMCALL<GetTdVmCallInfo>.
const GET_INFO: u64 = 0x1_0000;
const SIZE_MISMATCH: u64 = 0xc000_0b0b << 32;
const OPERAND_INVALID: u64 = 0xc000_0100 << 32;

pub(super) fn tdcall(engine: &mut Engine<'_>) -> Result<(), String> {
    let [leaf, rcx, rdx, r11, r12] =
        [RegisterX86::RAX, RegisterX86::RCX, RegisterX86::RDX, RegisterX86::R11, RegisterX86::R12]
            .map(|register| engine.reg_read(register).unwrap());
    let before = engine.get_data().counts.tdcalls;
    engine.get_data_mut().counts.tdcalls += 1;
    let honest = match leaf {
        0 => {
            let machine = engine.get_data_mut();
            machine.counts.exits += 1;
            if r11 == GET_INFO {
                return waits(engine);
            }
            return stopped(machine, r11, r12);
        }
        1 => info(engine.get_data()),
        2 => [0, rcx, rdx, 0, 0],
        6 => [acceptable(engine.get_data(), rcx)?, rcx, rdx, 0, 0],
        _ => return Err(format!("TDCALL leaf {leaf}")),
    };
    let answer = (engine.get_data().host.tdcall)(leaf, rcx, before, honest);
    if answer[0] == 0 {
        match leaf {
            2 => extend(engine, rcx, rdx)?,
            6 => accept(engine, rcx)?,
            _ => {}
        }
    }
    for (register, value) in [
        (RegisterX86::RAX, answer[0]),
        (RegisterX86::RCX, answer[1]),
        (RegisterX86::RDX, answer[2]),
        (RegisterX86::R8, answer[3]),
        (RegisterX86::R9, answer[4]),
        (RegisterX86::R10, 0),
        (RegisterX86::R11, 0),
    ] {
        engine.reg_write(register, value).unwrap();
    }
    Ok(())
}

/// TDG.VP.INFO: width of addresses, attributes, vCPUs and their most, index.
fn info(machine: &Machine) -> Answer {
    let host = &machine.host;
    let vcpus = u64::from(host.vcpus);
    [0, host.address_bits.into(), host.attributes, vcpus << 32 | vcpus, machine.vcpu.into()]
}

/// TDG.MR.RTMR.EXTEND, by 48 bytes of private memory.
fn extend(engine: &mut Engine<'_>, address: u64, register: u64) -> Result<(), String> {
    let (event, private, _) = walk(engine, address)?;
    let machine = engine.get_data();
    if !private || event % 64 != 0 || !machine.is_accepted(event) || register > 3 {
        return Err(format!("RTMR{register} is extended by what is at {event:#x}"));
    }
    let event = engine.mem_read_as_vec(event, 48).unwrap();
    let rtmr = &mut engine.get_data_mut().rtmrs[usize::try_from(register).unwrap()];
    *rtmr = Digest384::of(&[&rtmr.0[..], &event].concat());
    Ok(())
}

/// What TDG.MEM.PAGE.ACCEPT answers to an address whose lowest bits are the page's level.
fn acceptable(machine: &Machine, page: u64) -> Result<u64, String> {
    let (address, level) = (page & !0xfff, page & 0xfff);
    let (bit, _) = machine.private_bit();
    if address & bit != 0 || level > 1 || level == 1 && address % GRANULE != 0 {
        return Err(format!("TDG.MEM.PAGE.ACCEPT of {page:#x}"));
    }
    Ok(if !machine.is_memory(address) {
        OPERAND_INVALID
    } else if level == 1 && !machine.host.large {
        SIZE_MISMATCH
    } else {
        0
    })
}

/// TDG.MEM.PAGE.ACCEPT clears what it accepts.
fn accept(engine: &mut Engine<'_>, page: u64) -> Result<(), String> {
    let pages = if page & 1 == 1 { GRANULE / PAGE } else { 1 };
    engine.get_data_mut().accept(page & !0xfff, pages)?;
    let bytes = usize::try_from(pages * PAGE).unwrap();
    engine.mem_write(page & !0xfff, &vec![0; bytes]).unwrap();
    Ok(())
}

/// GetTdVmCallInfo, which leaves the processor to the host for a while; by a vCPU other than the first.
/// What is answered means nothing.
fn waits(engine: &mut Engine<'_>) -> Result<(), String> {
    use RegisterX86::{R10, R11, R12, R13, R14, R15, RCX};
    let asked = [RCX, R10, R12, R13, R14, R15].map(|register| engine.reg_read(register).unwrap());
    let machine = engine.get_data_mut();
    if asked != [0xfc00, 0, 1, 0, 0, 0] || machine.vcpu == 0 {
        return Err(format!("GetTdVmCallInfo of vCPU {}: {asked:x?}", machine.vcpu));
    }
    machine.counts.waits += 1;
    for register in [R10, R11, R12, R13, R14, R15] {
        engine.reg_write(register, u64::MAX).unwrap();
    }
    Ok(())
}

/// TDG.VP.VMCALL: else nothing but ReportFatalError (GHCI).
fn stopped(machine: &mut Machine, function: u64, code: u64) -> Result<(), String> {
    let (0x1_0003, Some(fatal)) = (function, Fatal::from_tdx_code(code)) else {
        return Err(format!("TDG.VP.VMCALL {function:#x} with {code:#x}"));
    };
    if machine.counts.stops == machine.host.resumes {
        machine.finish(End::Stopped(fatal));
    }
    machine.counts.stops += 1;
    Ok(())
}

/// Leaves of CPUID that the TDX module answers itself. All others end in #VE.
pub(super) fn cpuid(engine: &mut Engine<'_>, leaf: u64, _subleaf: u32) {
    let words = |text: [u8; 12]| {
        let [ebx, edx, ecx] =
            [0, 4, 8].map(|at| u32::from_le_bytes(text[at..at + 4].try_into().unwrap()));
        [ebx, ecx, edx].map(u64::from)
    };
    let [signature, vendor] = [engine.get_data().host.cpuid_signature, *b"GenuineIntel"].map(words);
    let registers = match leaf {
        0x21 => [0, signature[0], signature[1], signature[2]],
        0 => [0x21, vendor[0], vendor[1], vendor[2]],
        // Nothing that the emulated processor lacks.
        _ => [0; 4],
    };
    for (register, value) in
        [RegisterX86::RAX, RegisterX86::RBX, RegisterX86::RCX, RegisterX86::RDX]
            .into_iter()
            .zip(registers)
    {
        engine.reg_write(register, value).unwrap();
    }
    skip(engine, 2);
}
