//! Flags of commands that measure or pack guests of Casemate's own firmware.

use anyhow::ensure;
use casemate_config::{Acceptance, GuestConfig};
use casemate_launch::firmware::Flags;

use super::words;

/// What Casemate's own firmware does otherwise than usual. It is measured.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct OwnFirmware {
    /// Casemate's firmware: whether the kernel accepts memory as it uses it, or the firmware all of it
    /// before the kernel starts [default: lazy]
    #[arg(long, value_name = "WHEN", value_parser = words::<Acceptance>(Acceptance::WORDS))]
    accept_memory: Option<Acceptance>,
    /// Casemate's firmware: the image for development, which says on the serial port what it does
    #[arg(long)]
    firmware_log: bool,
}

impl OwnFirmware {
    /// What a configuration says.
    pub(crate) const fn of(config: &GuestConfig) -> Self {
        let GuestConfig { accept_memory, firmware_log, .. } = *config;
        Self { accept_memory: Some(accept_memory), firmware_log }
    }

    pub(crate) fn flags(self) -> Flags {
        let accept_all = self.accept_memory == Some(Acceptance::Eager);
        Flags { accept_all, log: self.firmware_log, ..Flags::default() }
    }

    /// The image that comes with this program.
    pub(crate) fn image(self) -> &'static [u8] {
        casemate_firmware_image::image(self.firmware_log)
    }

    /// Refuses what another firmware does not know.
    pub(crate) fn is_for(self, ours: bool) -> anyhow::Result<()> {
        let usual = self.flags() == Flags::default();
        ensure!(
            ours || usual,
            "--accept-memory and --firmware-log are for Casemate's own firmware: leave them out"
        );
        Ok(())
    }

    /// The same for readers of a measurement.
    pub(crate) fn notes(self) -> Vec<&'static str> {
        let flags = self.flags();
        let all = flags.accept_all.then_some("accepts all memory before the kernel starts");
        let log =
            flags.log.then_some("is for development: it says on the serial port what it does");
        all.into_iter().chain(log).collect()
    }
}
