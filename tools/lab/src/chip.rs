//! The emulated SEV-SNP chip: its processor, and the behaviour of its secure processor.

use std::fmt;
use std::str::FromStr;

/// A processor with a recorded CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// EPYC 7763.
    Milan,
    /// EPYC 9124.
    Genoa,
}

impl Processor {
    /// All recorded processors.
    pub const ALL: [Self; 2] = [Self::Milan, Self::Genoa];

    /// Name on the command line and in the emulator.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "milan",
            Self::Genoa => "genoa",
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Processor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|processor| processor.name() == text)
            .ok_or_else(|| format!("unknown processor {text:?}: use milan or genoa"))
    }
}

/// Processor and secure processor of an SEV-SNP host.
#[derive(Clone, Debug, Default)]
pub struct Chip {
    /// Processor whose CPUID the host's kernel finds and the secure processor checks against. With it,
    /// contents of memory are as on silicon: a page that becomes private outside of a launch holds
    /// noise, and the host reads noise from private memory. `None` is a processor of the emulator's own,
    /// without noise.
    pub processor: Option<Processor>,
    /// Whether the secure processor corrects only the first wrong entry of a CPUID page.
    pub corrects_first: bool,
    /// Time that a launch command takes for each page, in microseconds.
    pub launch_delay_us: u32,
}

impl Chip {
    /// A chip with a recorded processor.
    #[must_use]
    pub fn recorded(processor: Processor) -> Self {
        Self { processor: Some(processor), ..Self::default() }
    }

    /// The chip that a saved state depends on: the rest changes nothing before the first guest.
    pub(crate) fn as_saved(&self) -> Self {
        Self { processor: self.processor, ..Self::default() }
    }

    /// The emulator's device, which writes its log to `log`.
    pub(crate) fn device(&self, log: &str) -> String {
        // Only with `host-check` does the emulator tell the host's reads from the guest's.
        let mut device = format!("amd-psp,host-check=on,log={log}");
        if let Some(processor) = self.processor {
            device += &format!(",processor={processor},scramble=on");
        }
        if self.corrects_first {
            device += ",correct-first=on";
        }
        if self.launch_delay_us != 0 {
            device += &format!(",launch-delay-us={}", self.launch_delay_us);
        }
        device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_and_the_plain_chip_has_none() {
        assert_eq!(Chip::default().device("l"), "amd-psp,host-check=on,log=l");
        let chip =
            Chip { corrects_first: true, launch_delay_us: 7, ..Chip::recorded(Processor::Genoa) };
        let device = chip.device("l");
        for option in ["processor=genoa", "scramble=on", "correct-first=on", "launch-delay-us=7"] {
            assert!(device.split(',').any(|one| one == option), "{device}");
        }
        let saved = chip.as_saved().device("l");
        assert!(saved.ends_with("processor=genoa,scramble=on"), "{saved}");
    }
}
