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
}

impl OwnFirmware {
    /// What a configuration says.
    pub(crate) const fn of(config: &GuestConfig) -> Self {
        Self { accept_memory: Some(config.accept_memory) }
    }

    pub(crate) fn flags(self) -> Flags {
        Flags { accept_all: self.accept_memory == Some(Acceptance::Eager), ..Flags::default() }
    }

    /// Refuses what another firmware does not know.
    pub(crate) fn is_for(self, ours: bool) -> anyhow::Result<()> {
        let usual = self.flags() == Flags::default();
        ensure!(ours || usual, "--accept-memory is for Casemate's own firmware: leave it out");
        Ok(())
    }

    /// The same for readers of a measurement.
    pub(crate) fn notes(self) -> Vec<&'static str> {
        let flags = self.flags();
        flags
            .accept_all
            .then_some("accepts all memory before the kernel starts")
            .into_iter()
            .collect()
    }
}
