//! What the development image says on the serial port. The other image has none of this code: a test
//! looks for instructions that access ports.

use core::arch::asm;
use core::fmt::{self, Write as _};

use casemate_firmware_logic::config::Platform;

use crate::{snp, tdx};

/// The first serial port.
const PORT: u16 = 0x3f8;

/// Says a line in the development image; nothing in the other.
macro_rules! log {
    ($platform:expr, $($text:tt)*) => {
        if cfg!(firmware_log) {
            $crate::log::line($platform, format_args!($($text)*));
        }
    };
}
pub(crate) use log;

struct Port(Platform);

/// Writes a line.
pub fn line(platform: Platform, text: fmt::Arguments<'_>) {
    if platform == Platform::Snp && !snp::open_ghcb() {
        return;
    }
    // Our own writer never fails.
    let _ = writeln!(Port(platform), "firmware: {text}\r");
}

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match self.0 {
                // SAFETY: a device's port. No memory changes.
                Platform::Plain => unsafe {
                    asm!("out dx, al", in("dx") PORT, in("al") byte, options(nostack, nomem));
                },
                Platform::Snp => snp::write_port(PORT, byte),
                Platform::Tdx => tdx::write_port(PORT, byte),
            }
        }
        Ok(())
    }
}
