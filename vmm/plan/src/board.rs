//! The board: where everything is in a guest's physical address space and on its port bus. Fixed,
//! so that the same configuration is always the same machine.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | 0xa_0000 | RAM; the first 64 KiB hold what a kernel is told |
//! | 0xe_0000 | 0xf_0000 | ACPI tables |
//! | 0xf_0000 | at most 0xc000_0000 | RAM: a linker that is told to start at 1 MiB puts headers before that |
//! | 0xc000_0000 | 0xe000_0000 | registers of PCI devices; OVMF moves them lower where RAM ends lower |
//! | 0xe000_0000 | 0xe010_0000 | PCI configuration space (ECAM), bus 0 |
//! | 0xfec0_0000 | 0xfec0_1000 | I/O APIC |
//! | 0xfee0_0000 | 0xfee0_1000 | local APICs |
//! | 0x1_0000_0000 | | the rest of RAM |

use std::ops::Range;

use casemate_launch::tdvf::hob::q35_low_memory;
use casemate_launch::{Gpa, GpaError, GpaRange, MemoryKind, MemoryRange};

/// Below this, RAM starts at 0; what does not fit goes to [`HIGH_RAM`].
const LOW_RAM_MAX: u64 = 0xc000_0000;
const HIGH_RAM: u64 = 1 << 32;
const LEGACY_HOLE: u64 = 0xa_0000;

/// Where ACPI tables go, the RSDP first.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// Where registers of PCI devices are.
pub const PCI_WINDOW: Range<u32> = 0xc000_0000..0xe000_0000;
/// PCI configuration space of bus 0.
pub const ECAM: Range<u32> = 0xe000_0000..0xe010_0000;
/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Size of the I/O APIC's registers.
pub const IO_APIC_SIZE: u64 = 0x1000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Ports.
pub mod port {
    /// Keyboard controller, command.
    pub const KEYBOARD: u16 = 0x64;
    /// COM1.
    pub const SERIAL: u16 = 0x3f8;
    /// Number of COM1's ports.
    pub const SERIAL_COUNT: u8 = 8;
    /// A guest's own exit status, a byte.
    pub const EXIT: u16 = 0x501;
    /// pvpanic.
    pub const PANIC: u16 = 0x505;
    /// ACPI sleep control, sleep status and reset; where firmware expects a q35 machine, also its
    /// power management registers.
    pub const POWER: u16 = 0x600;
}

/// Registers and values behind [`port::POWER`] (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).
pub mod power {
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u16 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u16 = 1;
    /// Offset of the reset register.
    pub const RESET: u16 = 2;
    /// Value that resets when it is written to the reset register.
    pub const RESET_VALUE: u8 = 1;
    /// SLP_TYP of S5, soft off.
    pub const S5: u8 = 5;
}

/// Interrupts of the I/O APIC.
pub mod gsi {
    /// COM1's usual one.
    pub const SERIAL: u32 = 4;
    /// ACPI events.
    pub const EVENTS: u32 = 5;
    /// So many there are.
    pub const COUNT: u8 = 8;
}

/// The memory of a guest, laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Board {
    low: GpaRange,
    high: Option<GpaRange>,
}

impl Board {
    /// A board with `memory` bytes of RAM.
    ///
    /// # Errors
    /// If that is not a whole number of pages, or too much.
    pub fn new(memory: u64) -> Result<Self, GpaError> {
        Self::split(memory, memory.min(LOW_RAM_MAX))
    }

    /// A board whose RAM lies as that of QEMU's q35 machine: OVMF measures where it is.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn like_q35(memory: u64) -> Result<Self, GpaError> {
        Self::split(memory, q35_low_memory(memory))
    }

    fn split(memory: u64, low: u64) -> Result<Self, GpaError> {
        let high = memory - low;
        Ok(Self {
            low: GpaRange::from_bytes(Gpa(0), low)?,
            high: match high {
                0 => None,
                _ => Some(GpaRange::from_bytes(Gpa(HIGH_RAM), high)?),
            },
        })
    }

    /// Where BARs can be: OVMF moves them to the first address from 2 GiB on that has no RAM.
    #[must_use]
    pub fn bar_window(&self) -> Range<u32> {
        const TWO_GIB: u64 = 2 << 30;
        let start = self.low.end().0.max(TWO_GIB).min(PCI_WINDOW.start.into());
        u32::try_from(start).unwrap_or(PCI_WINDOW.start)..PCI_WINDOW.end
    }

    /// RAM, ascending.
    pub fn ram(&self) -> impl Iterator<Item = GpaRange> {
        [self.low].into_iter().chain(self.high)
    }

    /// What the guest is told of its memory (e820), ascending.
    #[must_use]
    pub fn memory_map(&self) -> Vec<MemoryRange> {
        let range = |range: Range<u64>, kind| MemoryRange {
            start: Gpa(range.start),
            bytes: range.end.saturating_sub(range.start),
            kind,
        };
        let low_end = self.low.end().0;
        let mut map = vec![
            range(0..low_end.min(LEGACY_HOLE), MemoryKind::Ram),
            range(ACPI_TABLES, MemoryKind::Acpi),
            range(ACPI_TABLES.end..low_end, MemoryKind::Ram),
            range(ECAM.start.into()..ECAM.end.into(), MemoryKind::Reserved),
        ];
        map.extend(self.high.map(|high| range(high.start().0..high.end().0, MemoryKind::Ram)));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_that_does_not_fit_below_the_window_goes_above_4_gib() {
        let ram =
            |memory| Board::new(memory).unwrap().ram().map(|r| r.to_string()).collect::<Vec<_>>();
        assert_eq!(ram(512 * MIB), ["0x0..0x20000000"]);
        assert_eq!(ram(3072 * MIB), ["0x0..0xc0000000"]);
        assert_eq!(ram(4096 * MIB), ["0x0..0xc0000000", "0x100000000..0x140000000"]);
        assert!(Board::new(1000).is_err());
        let board = Board::like_q35(4096 * MIB).unwrap();
        let ram: Vec<_> = board.ram().map(|range| range.to_string()).collect();
        assert_eq!(ram, ["0x0..0x80000000", "0x100000000..0x180000000"]);
        assert_eq!(board.bar_window(), 0x8000_0000..0xe000_0000);
        assert_eq!(Board::new(3072 * MIB).unwrap().bar_window(), 0xc000_0000..0xe000_0000);
    }

    #[test]
    fn the_map_is_ascending_and_tells_all_ram_but_the_hole() {
        let map = Board::new(8192 * MIB).unwrap().memory_map();
        assert!(map.windows(2).all(|two| two[0].start.0 + two[0].bytes <= two[1].start.0));
        let ram: u64 = map.iter().filter(|r| r.kind == MemoryKind::Ram).map(|r| r.bytes).sum();
        assert_eq!(ram, 8192 * MIB - (ACPI_TABLES.end - LEGACY_HOLE));
    }
}
