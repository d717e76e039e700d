//! What differs between VMMs at launch: the registers of new vCPUs, and what OVMF's sections become.
//!
//! A profile is one table of registers, read by the calculator and by the launcher alike. Sources
//! of the values: `qemu` reproduces what a genuine chip signed under QEMU 10 on KVM; `ec2` and `gce`
//! are those of sev-snp-measure 0.0.13; `casemate` is ours to define.

use std::fmt;
use std::str::FromStr;

use crate::{InitialVcpu, Segment};

mod cpu_signature;

pub use cpu_signature::{CpuSignature, CpuSignatureError};

/// Reset vector of x86 processors, at which the boot processor starts.
pub const RESET_VECTOR: u32 = 0xffff_fff0;

/// Whose guest it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// QEMU on KVM before 10.2: it patches the kernel's header.
    QemuBefore10_2,
    /// QEMU on KVM from 10.2 on. An OVMF guest that we launch has this profile too, so that it measures to what
    /// is in its owner's policies already.
    #[default]
    Qemu,
    /// Cloud Hypervisor, which launches confidential guests from IGVM files alone.
    CloudHypervisor,
    /// Amazon EC2, as of 2026.
    Ec2,
    /// Google Compute Engine.
    Gce,
    /// libkrun: its boot processor and the others start with registers of their own. The sections are
    /// taken to be those of OVMF.
    Krun,
    /// Our own firmware. RDX is zero, so that the digest does not depend on the CPU model.
    Casemate,
}

const fn segment(selector: u16, attributes: u16, limit: u32, base: u64) -> Segment {
    Segment { selector, attributes, limit, base }
}

const DATA: Segment = segment(0, 0x93, 0xffff, 0);
const TABLE: Segment = segment(0, 0, 0xffff, 0);

/// The reset state as QEMU writes it. CS, RIP and RDX come from [`Profile::vcpu`].
const QEMU: InitialVcpu = InitialVcpu {
    es: DATA,
    cs: segment(0xf000, 0x9b, 0xffff, 0),
    ss: DATA,
    ds: DATA,
    fs: DATA,
    gs: DATA,
    gdtr: TABLE,
    ldtr: segment(0, 0x82, 0xffff, 0),
    idtr: TABLE,
    tr: segment(0, 0x8b, 0xffff, 0),
    cr0: 0x10,
    dr6: 0xffff_0ff0,
    dr7: 0x400,
    rflags: 2,
    g_pat: 0x0007_0406_0007_0406,
    xcr0: 1,
    mxcsr: 0x1f80,
    x87_fcw: 0x37f,
    ..InitialVcpu::ZERO
};

/// KVM's own reset value of RDX: family 6.
const KVM_RDX: u64 = 0x600;

/// CS has attributes 0x9a on a vCPU that starts at the reset vector.
const EC2: InitialVcpu = InitialVcpu {
    ss: segment(0, 0x92, 0xffff, 0),
    tr: segment(0, 0x83, 0xffff, 0),
    rdx: KVM_RDX,
    mxcsr: 0,
    x87_fcw: 0,
    ..QEMU
};

const GCE: InitialVcpu =
    InitialVcpu { g_pat: 0x0007_0106, rdx: KVM_RDX, mxcsr: 0, x87_fcw: 0, ..QEMU };

/// Segments as KVM resets them; stack and zero page of the Linux boot protocol in the boot processor
/// (libkrun, `arch/src/x86_64/linux/regs.rs`).
const KRUN: InitialVcpu = InitialVcpu {
    cs: segment(0xf000, 0x9a, 0xffff, 0),
    ss: segment(0, 0x92, 0xffff, 0),
    tr: segment(0, 0x83, 0xffff, 0),
    rsp: 0x8ff0,
    rbp: 0x8ff0,
    rsi: 0x7000,
    ..QEMU
};

/// Entry of libkrun's application processors, whatever the firmware's table has (the same file).
const KRUN_AP: u32 = 0xffff_fff3;

/// With an empty table of interrupts: what a host injects before the firmware's first instruction ends
/// the guest, instead of going by a table at address 0.
const CASEMATE: InitialVcpu = InitialVcpu { idtr: segment(0, 0, 0, 0), ..QEMU };

impl Profile {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Qemu,
        Self::QemuBefore10_2,
        Self::CloudHypervisor,
        Self::Ec2,
        Self::Gce,
        Self::Krun,
        Self::Casemate,
    ];

    /// The names of [`FromStr`]: `qemu` is the newest version whose rules are known.
    pub const NAMES: [&str; 8] =
        ["qemu", "qemu:10.2", "qemu:10.1", "cloud-hypervisor", "ec2", "gce", "krun", "casemate"];

    /// The name on the command line and in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::QemuBefore10_2 => "qemu:10.1",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Ec2 => "ec2",
            Self::Gce => "gce",
            Self::Krun => "krun",
            Self::Casemate => "casemate",
        }
    }

    /// The version of the rules that a prediction follows.
    #[must_use]
    pub const fn rules(self) -> &'static str {
        match self {
            Self::Qemu => "qemu:10.2",
            other => other.name(),
        }
    }

    /// The entry of all processors but the first, where the firmware's table has `reset_block`.
    #[must_use]
    pub const fn ap_entry(self, reset_block: Option<u32>) -> Option<u32> {
        match self {
            Self::Krun => Some(KRUN_AP),
            _ => reset_block,
        }
    }

    /// Whether the boot state, and so the digest, depends on the CPU model.
    #[must_use]
    pub const fn uses_signature(self) -> bool {
        matches!(self, Self::Qemu | Self::QemuBefore10_2)
    }

    /// Whether the firmware of a TDX guest gets the kernel with a patched header, which RTMR1 then
    /// covers.
    #[must_use]
    pub const fn patches_kernel(self) -> bool {
        matches!(self, Self::QemuBefore10_2)
    }

    /// Whether KVM makes the VMSAs, whose FPU state depends on the host's kernel.
    #[must_use]
    pub const fn runs_on_kvm(self) -> bool {
        matches!(self, Self::Qemu | Self::QemuBefore10_2 | Self::Krun | Self::Casemate)
    }

    /// A vCPU that starts at `entry`, of a CPU model with this signature.
    #[must_use]
    pub fn vcpu(self, entry: u32, signature: CpuSignature) -> InitialVcpu {
        let mut vcpu = match self {
            Self::Qemu | Self::QemuBefore10_2 => InitialVcpu { rdx: signature.0.into(), ..QEMU },
            // The registers are those of the IGVM file.
            Self::CloudHypervisor => CASEMATE,
            Self::Krun if entry == RESET_VECTOR => KRUN,
            Self::Krun => InitialVcpu { rsp: 0, rbp: 0, rsi: 0, ..KRUN },
            Self::Ec2 => EC2,
            Self::Gce => GCE,
            Self::Casemate => CASEMATE,
        };
        if self == Self::Ec2 && entry == RESET_VECTOR {
            vcpu.cs.attributes = 0x9a;
        }
        vcpu.waits_for_sipi = self != Self::Casemate && entry != RESET_VECTOR;
        vcpu.cs.base = u64::from(entry & 0xffff_0000);
        vcpu.rip = u64::from(entry & 0xffff);
        vcpu
    }
}

/// Flat segments of 4 GiB.
const FLAT_DATA: Segment = segment(16, 0xc93, 0xffff_ffff, 0);

/// A vCPU of a guest under an SVSM, which starts at `entry` in protected mode (COCONUT-SVSM's QEMU,
/// `target/i386/sev.c`).
#[must_use]
pub fn svsm_vcpu(entry: u64, signature: CpuSignature) -> InitialVcpu {
    InitialVcpu {
        es: FLAT_DATA,
        cs: segment(8, 0xc9b, 0xffff_ffff, 0),
        ss: FLAT_DATA,
        ds: FLAT_DATA,
        fs: FLAT_DATA,
        cr0: 0x11,
        rip: entry,
        rdx: signature.0.into(),
        ..QEMU
    }
}

/// A name that is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown launcher {0:?}; known are {known}", known = Profile::NAMES.join(", "))]
pub struct ProfileError(String);

impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(name: &str) -> Result<Self, ProfileError> {
        if name == Self::Qemu.rules() {
            return Ok(Self::Qemu);
        }
        let found = Self::ALL.into_iter().find(|profile| profile.name() == name);
        found.ok_or_else(|| ProfileError(name.to_owned()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_and_names_rules() {
        for name in Profile::NAMES {
            let launcher: Profile = name.parse().unwrap();
            assert!(launcher.name() == name || launcher.rules() == name, "{name}");
        }
        assert_eq!("qemu".parse(), "qemu:10.2".parse::<Profile>());
        let error = "qemu:9".parse::<Profile>().unwrap_err().to_string();
        assert!(error.contains("qemu:10.1"), "{error}");
    }

    #[test]
    fn the_boot_processor_of_libkrun_differs_from_the_others() {
        let first = Profile::Krun.vcpu(RESET_VECTOR, CpuSignature(1));
        let entry = Profile::Krun.ap_entry(None).unwrap();
        let other = Profile::Krun.vcpu(entry, CpuSignature(1));
        assert_eq!((first.rip, first.rsp, first.rsi, first.rdx), (0xfff0, 0x8ff0, 0x7000, 0));
        assert_eq!((other.rip, other.rsp, other.rsi), (0xfff3, 0, 0));
        assert_eq!((first.cs.base, other.cs.base), (0xffff_0000, 0xffff_0000));
    }
}
