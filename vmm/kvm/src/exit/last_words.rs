//! What a confidential guest says when it gives up.

use std::fmt;

/// An SEV guest's termination request (GHCB specification, "Termination Request").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevTermination {
    /// Who defines the code: 0 the GHCB specification, 1 Linux.
    pub reason_set: u8,
    /// The code.
    pub reason: u8,
}

impl SevTermination {
    /// From the value of the GHCB MSR, `data[0]` of the system event: reason set in bits 15:12, code
    /// in bits 23:16.
    #[must_use]
    pub fn decode(ghcb_msr: u64) -> Self {
        let [_, set, reason, ..] = ghcb_msr.to_le_bytes();
        Self { reason_set: set >> 4, reason }
    }

    /// What the code means. Set 1 is Linux's (`asm/sev-common.h`, GHCB_TERM_*).
    #[must_use]
    pub fn words(self) -> Option<&'static str> {
        Some(match (self.reason_set, self.reason) {
            (0, 0) => "a failure without a name",
            (0, 1) => "the host's GHCB protocol version does not suit it",
            (0, 2) => "it needs SEV-SNP features that it was not given",
            (1, 0) => "its GHCB could not be registered",
            (1, 1) => "a page state change failed",
            (1, 2) => "PVALIDATE failed: the host changed a page's state, or mapped another",
            (1, 3) => "it does not run at VMPL 0",
            (1, 4) => "its CPUID page is not valid",
            (1, 5) => "CPUID from the host failed",
            (1, 6) => "its secrets page is missing or not valid",
            (1, 7) => "it runs below VMPL 0 without an SVSM",
            (1, 8) => "its SVSM reports VMPL 0",
            (1, 9) => "its SVSM's calling area is not valid",
            (1, 10) => "Secure TSC could not be set up",
            (1, 11) => "its SVSM's calling area could not be moved",
            _ => return None,
        })
    }
}

impl fmt::Display for SevTermination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason_set, reason } = self;
        write!(f, "the guest ended itself, reason {reason_set}:{reason}")?;
        self.words().map_or(Ok(()), |words| write!(f, ": {words}"))
    }
}

/// A TD's ReportFatalError (Intel TDX GHCI, `TDG.VP.VMCALL<ReportFatalError>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdxFatal {
    /// Error code, R12 without bit 63.
    pub code: u64,
    /// Guest-physical address of more about it, if the guest gives one.
    pub gpa: Option<u64>,
    /// The guest's words, at most 64 characters; what does not print is a dot.
    pub message: String,
}

impl TdxFatal {
    /// From the data of the system event: the guest's registers, RAX to R15 by number. RCX tells
    /// which of them the guest filled.
    #[must_use]
    pub fn decode(data: &[u64]) -> Self {
        const RCX: usize = 1;
        const R12: usize = 12;
        const R13: usize = 13;
        /// R14, R15, RBX, RDI, RSI, R8, R9, RDX.
        const MESSAGE: [usize; 8] = [14, 15, 3, 7, 6, 8, 9, 2];
        let register = |number: usize| data.get(number).copied().unwrap_or(0);
        let filled = |number: &usize| register(RCX) & (1 << number) != 0;
        let bytes = MESSAGE.into_iter().filter(filled).flat_map(|n| register(n).to_le_bytes());
        let printable = |byte: u8| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '.',
        };
        let message = bytes.take_while(|byte| *byte != 0).map(printable).collect();
        let code = register(R12);
        let has_gpa = code & (1 << 63) != 0;
        Self { code: code & !(1 << 63), gpa: has_gpa.then(|| register(R13)), message }
    }
}

impl fmt::Display for TdxFatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest reports a fatal error, code {:#x}", self.code)?;
        if let Some(gpa) = self.gpa {
            write!(f, ", more at gpa {gpa:#x}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": \"{}\"", self.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_termination_is_said_in_words() {
        let linux_pvalidate = SevTermination::decode(0x02_1100);
        assert_eq!(linux_pvalidate, SevTermination { reason_set: 1, reason: 2 });
        assert!(linux_pvalidate.to_string().contains("reason 1:2: PVALIDATE failed"));
        let unknown = SevTermination::decode(0xff_f100);
        assert_eq!(unknown.to_string(), "the guest ended itself, reason 15:255");
    }

    #[test]
    fn a_message_is_read_from_the_registers_of_the_mask() {
        let mut data = [0; 16];
        data[14] = u64::from_le_bytes(*b"TD misco");
        data[15] = u64::from_le_bytes(*b"nfigurat");
        data[3] = u64::from_le_bytes(*b"ion\x1b\0\0\0\0");
        data[7] = u64::from_le_bytes(*b"not this");
        data[1] = 1 << 14 | 1 << 15 | 1 << 3 | 1 << 12 | 1 << 13;
        data[12] = 1 << 63 | 0x20;
        data[13] = 0x1000;
        let fatal = TdxFatal::decode(&data);
        assert_eq!((fatal.code, fatal.gpa), (0x20, Some(0x1000)));
        assert_eq!(fatal.message, "TD misconfiguration.");
    }

    proptest! {
        #[test]
        fn only_what_prints_gets_out(data in proptest::collection::vec(any::<u64>(), 0..20)) {
            let fatal = TdxFatal::decode(&data);
            prop_assert!(fatal.message.len() <= 64);
            prop_assert!(fatal.message.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
