//! The few devices of a PC that no guest does without, each behind a port or two; and those that
//! OVMF does not do without.

mod chipset;
mod clock;
mod ending;
pub mod fw_cfg;
mod io_apic;
mod serial;
mod uart;

use std::sync::Arc;

pub use chipset::PmRegisters;
pub use clock::Clock;
pub use ending::{AcpiPower, ExitPort, KeyboardReset, PanicPort};
pub use io_apic::{IoApic, Pin};
pub use serial::{Serial, SerialInput};

/// How a guest ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powers off.
    PowerOff,
    /// It resets.
    Reset,
    /// Its kernel panics.
    Panic,
    /// It ends with a status of its own.
    Status(u8),
}

/// Who wants to know. Called from vCPU threads; the first call counts.
pub type OnEnd = Arc<dyn Fn(GuestEnd) + Send + Sync>;
