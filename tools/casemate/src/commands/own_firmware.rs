//! Flags of commands that measure or pack guests of Casemate's own firmware.

use anyhow::ensure;
use casemate_config::{Acceptance, GuestConfig};

use super::words;

/// Options of the built-in firmware. They are measured.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct OwnFirmware {
    /// Accept memory in the kernel (lazy) or in the firmware (eager) [default: lazy]
    ///
    /// Only for guests of the built-in firmware.
    #[arg(long, value_name = "WHEN", value_parser = words::<Acceptance>(Acceptance::WORDS))]
    accept_memory: Option<Acceptance>,
    /// Use the development firmware, which logs to the serial port
    #[arg(long)]
    firmware_log: bool,
}

impl OwnFirmware {
    /// The configuration with these flags and nothing else.
    pub(crate) fn config(self) -> GuestConfig {
        let accept_memory = self.accept_memory.unwrap_or_default();
        GuestConfig { accept_memory, firmware_log: self.firmware_log, ..GuestConfig::default() }
    }

    /// Refuses what another firmware does not know.
    pub(crate) fn is_for(self, ours: bool) -> anyhow::Result<()> {
        let usual = self.config() == GuestConfig::default();
        ensure!(
            ours || usual,
            "--accept-memory and --firmware-log are for Casemate's own firmware: leave them out"
        );
        Ok(())
    }
}

/// The unusual choices of a configuration, for readers of a measurement.
pub(crate) fn firmware_notes(config: &GuestConfig) -> Vec<&'static str> {
    let eager = config.accept_memory == Acceptance::Eager;
    let all = eager.then_some("accepts all memory before the kernel starts");
    let log = "is for development: it says on the serial port what it does";
    all.into_iter().chain(config.firmware_log.then_some(log)).collect()
}
