//! The firmware image, built with this crate.

/// The image: 64 KiB that end at 4 GiB of guest-physical memory. Its first page is the
/// [config page](https://docs.rs/casemate-firmware), empty here: an image that nobody filled in
/// boots nothing.
pub static IMAGE: &[u8; 64 << 10] = include_bytes!(concat!(env!("OUT_DIR"), "/firmware.bin"));

/// The ELF file that the image was cut from, with sections and symbols: for tools that look at code.
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/firmware.elf"));
