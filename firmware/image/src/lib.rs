//! The firmware image, built with this crate.

/// The image: 64 KiB that end at 4 GiB of guest-physical memory. Its first page is the
/// [config page](https://docs.rs/casemate-firmware-logic), empty here: an image that nobody filled in
/// boots nothing.
pub static IMAGE: &[u8; 64 << 10] = include_bytes!(concat!(env!("OUT_DIR"), "/firmware.bin"));

/// The same for development: it says on the serial port what it does, and boots only where the measured
/// config page says that it is this one.
pub static LOGGING_IMAGE: &[u8; 64 << 10] =
    include_bytes!(concat!(env!("OUT_DIR"), "/firmware-log.bin"));

/// The ELF files that the two were cut from, with sections and symbols: for tools that look at code.
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/firmware.elf"));
/// The other one.
pub static LOGGING_ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/firmware-log.elf"));

/// The image that logs, or the one that does not.
#[must_use]
pub fn image(log: bool) -> &'static [u8] {
    if log { LOGGING_IMAGE } else { IMAGE }
}
