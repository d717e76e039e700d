//! What must hold of every instruction of the image, whatever compiler and linker did.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;

use casemate_firmware_image::{ELF, LOGGING_ELF};
use common::Elf;
use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

const IMAGE: Elf = Elf(ELF);

/// All of the 64-bit code that Rust made; what is by hand is in `entry.s`.
fn text() -> Vec<Instruction> {
    decoded(&IMAGE)
}

fn decoded(image: &Elf) -> Vec<Instruction> {
    let text = image.section(".text").unwrap();
    let code = Decoder::with_ip(64, text.bytes, text.address, DecoderOptions::NONE);
    let code: Vec<_> = code.into_iter().collect();
    assert!(code.len() > 1000, "{} instructions", code.len());
    code
}

/// There is no instruction of a kind, of which `example` is one.
fn none(what: &str, example: &[u8], is: impl Fn(&Instruction) -> bool) {
    let example = Decoder::with_ip(64, example, 0, DecoderOptions::NONE).decode();
    assert!(is(&example), "{:?} is {what}", example.code());
    let found = text().into_iter().find(|instruction| is(instruction));
    let found = found.map(|one| format!("{what} at {:#x}: {:?}", one.ip(), one.code()));
    assert_eq!(found, None);
}

#[test]
fn no_byte_of_the_code_is_something_else() {
    none("no instruction", &[0x06], Instruction::is_invalid);
}

/// Traps save no such registers, and plain guests may run in an emulator that has none. One function
/// has them, which is called where the processor says that it has instructions for SHA-256.
#[test]
fn no_vectors_and_no_floating_point_but_for_sha_256() {
    let sha = IMAGE.function("sha25624compress_by_instructions");
    let sha_instructions = text().into_iter().filter(|instruction| {
        sha.contains(&instruction.ip()) && instruction.cpuid_features().contains(&CpuidFeature::SHA)
    });
    assert!(sha_instructions.count() > 0, "they are not in the function at {sha:x?}");
    // movaps %xmm1, %xmm0.
    none("a vector or floating-point instruction", &[0x0f, 0x28, 0xc1], |instruction| {
        let vectors = |register: Register| {
            register.is_vector_register() || register.is_st() || register.is_mm()
        };
        let features = instruction.cpuid_features();
        let found = (0..instruction.op_count())
            .any(|operand| vectors(instruction.op_register(operand)))
            || features.contains(&CpuidFeature::FPU)
            || features.contains(&CpuidFeature::SSE)
            || features.contains(&CpuidFeature::AVX);
        found && !sha.contains(&instruction.ip())
    });
}

/// Whatever interrupts the code may write below its stack pointer.
#[test]
fn nothing_lies_below_the_stack_pointer() {
    // mov %eax, -8(%rsp).
    none("below the stack pointer", &[0x89, 0x44, 0x24, 0xf8], |instruction| {
        let mut info = InstructionInfoFactory::new();
        // Pushes and calls move the pointer themselves.
        !instruction.is_stack_instruction()
            && info.info(instruction).used_memory().iter().any(|memory| {
                memory.base() == Register::RSP
                    && memory.index() == Register::None
                    && memory.displacement().cast_signed() < 0
                    && memory.access() != OpAccess::NoMemAccess
            })
    });
}

/// All that the host says comes through memory that is checked, and a few registers.
#[test]
fn no_port_is_read_or_written() {
    use Mnemonic::{In, Insb, Insd, Insw, Out, Outsb, Outsd, Outsw};
    let ports = [In, Insb, Insw, Insd, Out, Outsb, Outsw, Outsd];
    // in (%dx), %al.
    none("an access of a port", &[0xec], |instruction| ports.contains(&instruction.mnemonic()));
    // The image for development does, in plain guests.
    let logging = decoded(&Elf(LOGGING_ELF));
    assert_eq!(logging.iter().filter(|one| ports.contains(&one.mnemonic())).count(), 1);
}

/// Addresses that instructions name, without a register to add, are those of the image and of the
/// pages at 8 MiB that are added at launch or accepted: no device's.
#[test]
fn addresses_in_the_code_are_of_private_memory() {
    use casemate_firmware_logic::layout::{HANDOFF, HANDOFF_SIZE, IMAGE, SECRETS};
    let own = [IMAGE..1 << 32, SECRETS..HANDOFF + HANDOFF_SIZE];
    // mov 0xfee00020, %eax: the local APIC.
    let example = [0x67, 0x8b, 0x04, 0x25, 0x20, 0x00, 0xe0, 0xfe];
    none("an address of something else", &example, |instruction| {
        let named = (0..instruction.op_count())
            .any(|operand| instruction.op_kind(operand) == OpKind::Memory)
            && matches!(instruction.memory_base(), Register::None | Register::RIP)
            && instruction.memory_index() == Register::None;
        named && !own.iter().any(|range| range.contains(&instruction.memory_displacement64()))
    });
}

/// What changes hangs off one pointer.
#[test]
fn there_are_no_mutable_statics() {
    for name in [".data", ".rust_bss", ".tdata", ".tbss"] {
        let size = IMAGE.section(name).map_or(0, |section| section.size);
        assert_eq!(size, 0, "{name}");
    }
}

/// Something above 17 KiB today. A change that makes the image grow by a sixth is worth a look.
#[test]
fn code_and_constants_keep_to_their_budget() {
    let sizes = [".text", ".rodata", ".got", ".boot16"]
        .map(|name| IMAGE.section(name).map_or(0, |section| section.size));
    let size: u64 = sizes.iter().sum();
    assert!(size <= 20 << 10, "{size} bytes: {sizes:?}");
}
