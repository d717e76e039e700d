//! The emulated hosts: what machine each is, and how its kernel starts.

use std::fmt;
use std::str::FromStr;

use crate::chip::Chip;

/// A kind of emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Plain nested KVM on an AMD processor.
    Kvm,
    /// An AMD SEV-SNP host, with `/dev/sev`.
    Snp,
    /// An Intel TDX host.
    Tdx,
}

impl Host {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kvm, Self::Snp, Self::Tdx];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }

    /// Memory in MiB where nothing is said. SNP's must reach past 4 GiB: the RMP is at its end.
    pub fn default_memory_mib(self) -> u32 {
        match self {
            Self::Kvm => 3072,
            Self::Snp => 6144,
            Self::Tdx => 4096,
        }
    }

    /// Processors where nothing is said.
    ///
    /// Where guests run by VMRUN it is one: in software a second makes nothing faster, and QEMU without
    /// our patch can deliver an injected interrupt twice. Its VMRUN leaves the vector behind as a
    /// pending exception, and another processor's request to stop for a moment, as at each flush of
    /// its TLB, makes it one, whatever the guest's RFLAGS.IF (`helper_vmrun`, case
    /// `SVM_EVTINJ_TYPE_INTR`). A guest of several vCPUs runs on one as well.
    pub fn default_vcpus(self) -> u8 {
        match self {
            Self::Kvm | Self::Snp => 1,
            Self::Tdx => 2,
        }
    }

    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Kvm => "q35",
            Self::Snp | Self::Tdx => "q35,kernel-irqchip=off,smm=off",
        }
    }

    /// What TCG lacks is taken out by hand, so that the emulator does not warn of each.
    pub(crate) fn processor(self) -> &'static str {
        match self {
            Self::Kvm => {
                "EPYC-v3,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-perfctr-core,-clzero,\
                 -ibpb,-xsavec,-xsaves,-nrip-save"
            }
            Self::Snp => {
                "EPYC-Milan,-hypervisor,+svm,+npt,+nrip-save,+flushbyasid,+decodeassists,+lbrv,\
                 xlevel=0x80000021"
            }
            // This model has no TDX write erratum, so that Linux does without MOVDIR64B.
            Self::Tdx => "GraniteRapids,-hypervisor,-svm,phys-bits=52,+invtsc,+x2apic",
        }
    }

    /// The devices that make the host what it is; `log` is where they write.
    pub(crate) fn devices(self, chip: &Chip, log: &str) -> Vec<String> {
        match self {
            Self::Kvm => Vec::new(),
            Self::Snp => vec!["amd-iommu,snpsup=on".into(), chip.device(log)],
            Self::Tdx => vec![format!("tdx-module,log={log}")],
        }
    }

    /// Kernel command line beyond what all hosts have. A machine that is busy with something else may
    /// give the timer too little time for the kernel's check of it, which would end in a panic.
    pub(crate) fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Kvm => "nokaslr no_timer_check audit=0",
            Self::Snp => "no_timer_check init_on_alloc=0",
            Self::Tdx => "no_timer_check init_on_alloc=0 kvm_intel.tdx=1",
        }
    }

    /// Modules of the host's kernel; the TDX host's kernel has all built in.
    pub(crate) fn modules(self) -> &'static [&'static str] {
        const PLAIN: &[&str] = &[
            "virtio_pci",
            "virtio_rng",
            "9pnet_virtio",
            "9p",
            "tun",
            "vhost_net",
            "vhost_vsock",
            "kvm_amd",
        ];
        const SNP: &[&str] = &[
            "virtio_pci",
            "virtio_rng",
            "9pnet_virtio",
            "9p",
            "tun",
            "vhost_net",
            "vhost_vsock",
            "ccp",
            "kvm_amd",
        ];
        match self {
            Self::Kvm => PLAIN,
            Self::Snp => SNP,
            Self::Tdx => &[],
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|host| host.name() == text)
            .ok_or_else(|| format!("no host is called {text:?}: kvm, snp and tdx are"))
    }
}
