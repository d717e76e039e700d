//! Why the firmware gives up. Every anomaly is fatal; there are no ways to recover.

use core::fmt;

/// The code set of the firmware's termination requests (GHCB specification, section "Termination
/// Request"): 0 is the specification's, 1 Linux's. TDX guests have it in their fatal error, too.
pub const TERMINATION_SET: u8 = 5;

/// A reason, and the code by which the host hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fatal {
    /// An exception or interrupt.
    Trap = 1,
    /// The firmware's own logic failed.
    Panic = 2,
    /// The config page is not filled in, or says something unknown.
    Config = 3,
    /// The processor does not run what the config page says.
    Platform = 4,
    /// The hypervisor's answer breaks the GHCB protocol, or lacks what a guest needs.
    Hypervisor = 5,
    /// A page could not be accepted.
    Accept = 6,
    /// A page was accepted already: the host may have put another one in its place.
    AcceptedTwice = 7,
    /// The CPUID page is not one.
    Cpuid = 8,
    /// The header of the loader window is not one.
    Window = 9,
    /// Memory or vCPUs are not what a guest can have, or more than the config page allows.
    Machine = 10,
    /// The kernel is not the measured one.
    Kernel = 11,
    /// The initrd is not the measured one.
    Initrd = 12,
    /// The command line is not the measured one.
    CommandLine = 13,
    /// The kernel is no bzImage with a 64-bit entry that can be loaded at 16 MiB.
    KernelFormat = 14,
    /// Kernel and initrd do not fit into memory below 3 GiB.
    Room = 15,
    /// The trust domain's attributes are not those that Linux is protected by.
    Attributes = 16,
    /// A run-time measurement register could not be extended.
    Measure = 17,
    /// Software with more privileges is in the guest: it does not run at VMPL0.
    Vmpl = 18,
}

impl Fatal {
    /// The code of a TDX guest's fatal error (GHCI, `TDG.VP.VMCALL<ReportFatalError>`, R12): in the
    /// upper half, which is the guest's own.
    #[must_use]
    pub const fn tdx_code(self) -> u64 {
        (TERMINATION_SET as u64) << 40 | (self as u64) << 32
    }

    /// The reason of [`tdx_code`](Self::tdx_code).
    #[must_use]
    pub fn from_tdx_code(code: u64) -> Option<Self> {
        let [0, 0, 0, 0, code_of_set, TERMINATION_SET, 0, 0] = code.to_le_bytes() else {
            return None;
        };
        Self::from_code(code_of_set)
    }

    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        use Fatal::*;
        let all = [
            Trap,
            Panic,
            Config,
            Platform,
            Hypervisor,
            Accept,
            AcceptedTwice,
            Cpuid,
            Window,
            Machine,
            Kernel,
            Initrd,
            CommandLine,
            KernelFormat,
            Room,
            Attributes,
            Measure,
            Vmpl,
        ];
        all.into_iter().find(|fatal| *fatal as u8 == code)
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trap => "an exception or interrupt came while the firmware ran",
            Self::Panic => "the firmware's own logic failed",
            Self::Config => "the config page is not filled in, or says something unknown",
            Self::Platform => "the processor does not run what the config page says",
            Self::Hypervisor => "the hypervisor's answer breaks the GHCB protocol",
            Self::Accept => "a page could not be accepted",
            Self::AcceptedTwice => "a page was accepted already",
            Self::Cpuid => "the CPUID page is not one",
            Self::Window => "the header of the loader window is not one",
            Self::Machine => "memory or vCPUs are more than the config page allows, or impossible",
            Self::Kernel => "the kernel is not the measured one",
            Self::Initrd => "the initrd is not the measured one",
            Self::CommandLine => "the command line is not the measured one",
            Self::KernelFormat => "the kernel is no bzImage that can be loaded at 16 MiB",
            Self::Room => "kernel and initrd do not fit into memory below 3 GiB",
            Self::Attributes => "the trust domain can be debugged, or lacks SEPT_VE_DISABLE",
            Self::Measure => "a run-time measurement register could not be extended",
            Self::Vmpl => {
                "the guest does not run at VMPL0, the level that the firmware is made for"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_of_its_own_on_each_platform() {
        let known = (0..=u8::MAX).filter_map(Fatal::from_code);
        assert_eq!(known.clone().count(), Fatal::Vmpl as usize);
        for fatal in known {
            assert_eq!(Fatal::from_tdx_code(fatal.tdx_code()), Some(fatal));
        }
        assert_eq!(Fatal::from_tdx_code(0x20_0000), None, "somebody else's");
        assert_eq!(Fatal::from_tdx_code(Fatal::Trap.tdx_code() | 1), None);
    }
}
