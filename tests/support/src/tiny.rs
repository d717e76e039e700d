//! Programs of a few instructions, as ELF files: guests without an operating system, and commands
//! for guests that have one.

/// How a program is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As a kernel, by PVH: 32-bit protected mode.
    Pvh,
    /// As a program of Linux: 64-bit mode, system calls.
    Linux,
}

/// Where the file is loaded; the code follows the headers.
const BASE: u32 = 0x10_0000;
const HEADERS: usize = 64 + 2 * 56 + 20;

/// The address of the first instruction.
pub const CODE: u32 = 0x10_00c4;

/// An ELF file of `code`, all of which can be written as well.
#[must_use]
pub fn elf(code: &[u8], start: Start) -> Vec<u8> {
    let length = u64::try_from(HEADERS + code.len()).unwrap_or(u64::MAX);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let longs = |file: &mut Vec<u8>, values: &[u64]| {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    // Entry, program headers, no section headers; flags, sizes and counts.
    longs(&mut file, &[CODE.into(), 64, 0]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable, writable and executable: the whole file.
    longs(&mut file, &[1 | 7 << 32, 0, BASE.into(), BASE.into(), length, length, 0x1000]);
    // PT_NOTE: the 20 bytes before the code.
    let note = u64::from(CODE - BASE) - 20;
    longs(&mut file, &[4 | 4 << 32, note, 0, 0, 20, 20, 4]);
    // XEN_ELFNOTE_PHYS32_ENTRY, or a note of no meaning.
    let kind = if start == Start::Pvh { 18 } else { 0 };
    let words = [4, 4, kind, u32::from_le_bytes(*b"Xen\0"), CODE];
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    file.extend(code);
    file
}

/// Instructions that write a byte to a port.
#[must_use]
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Instructions that write a text to the serial port, byte by byte.
#[must_use]
pub fn say(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

/// Instructions that wait for ever.
pub const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// A program of Linux that writes its first argument's first byte, less '0', to port 0x501, by which
/// a guest gives its exit status.
#[must_use]
pub fn exit_with_digit() -> Vec<u8> {
    let code = [
        0xbf, 3, 0, 0, 0, // mov edi, 3
        0xb8, 172, 0, 0, 0, // mov eax, iopl
        0x0f, 0x05, // syscall
        0x48, 0x8b, 0x74, 0x24, 0x10, // mov rsi, argv[1]
        0x8a, 0x06, // mov al, [rsi]
        0x2c, b'0', // sub al, '0'
        0x66, 0xba, 0x01, 0x05, // mov dx, 0x501
        0xee, // out dx, al
        0x31, 0xff, // xor edi, edi
        0xb8, 60, 0, 0, 0, // mov eax, exit
        0x0f, 0x05, // syscall
    ];
    elf(&code, Start::Linux)
}
