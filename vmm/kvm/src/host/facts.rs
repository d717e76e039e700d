//! What was seen.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::files::Files;
use super::probe::{self, KvmFacts};
use crate::sev_device::{PlatformStatus, SevDevice};

/// Everything that [`findings`](super::findings) judges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The processor.
    pub cpu: Cpu,
    /// The kernel.
    pub kernel: Kernel,
    /// Modules that are there, with their parameters: kvm, kvm_amd, kvm_intel, ccp.
    pub modules: BTreeMap<String, BTreeMap<String, String>>,
    /// Access to devices, by path.
    pub devices: BTreeMap<String, Access>,
    /// What /dev/kvm says; None if it cannot be opened or is not KVM.
    pub kvm: Option<KvmFacts>,
    /// What /dev/sev says of SEV-SNP; None if it cannot be opened.
    pub sev_firmware: Option<Result<PlatformStatus, String>>,
    /// IOMMUs.
    pub iommus: Vec<String>,
    /// Types of IOMMU groups, each once: `identity` is passthrough.
    #[serde(default)]
    pub iommu_group_types: Vec<String>,
    /// SELinux, where the kernel runs it.
    #[serde(default)]
    pub selinux: Option<SeLinux>,
    /// The TDX module's version, from Linux 7.2 on.
    pub tdx_module: Option<String>,
    /// The TDX quote service's socket.
    pub quote_service: Access,
    /// Counted resources: `sev`, `sev_es`, `tdx`.
    pub misc: BTreeMap<String, Misc>,
    /// Limits of this process.
    pub limits: Limits,
    /// Whether io_uring can be used; why not, otherwise.
    pub io_uring: Access,
}

/// The kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// Flags of /proc/cpuinfo about encryption: the kernel takes away those that the BIOS disabled.
    pub cpu_flags: Vec<String>,
    /// Processors: which are online, and which are there.
    pub cpus: (String, String),
    /// Several threads of a core are in use.
    pub smt: bool,
    /// The kernel can hibernate.
    pub hibernation: bool,
    /// Its command line.
    #[serde(default)]
    pub command_line: String,
    /// vm.overcommit_memory.
    #[serde(default)]
    pub overcommit: Option<u32>,
}

/// SELinux, as it is for this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeLinux {
    /// It denies, rather than only log.
    pub enforcing: bool,
    /// The context of this process: user, role, type, level.
    pub context: String,
}

impl Kernel {
    /// The first two numbers of the release.
    #[must_use]
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some((next()?, next()?))
    }
}

/// Whether something can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Yes.
    Opens,
    /// It is not there.
    #[default]
    Missing,
    /// This user may not.
    Denied,
    /// For another reason.
    Fails {
        /// In words.
        why: String,
    },
}

/// A resource of the `misc` cgroup controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misc {
    /// How many the machine has.
    pub capacity: Option<u64>,
    /// The limit with the least room among this process's cgroups; None if there is no limit.
    pub limit: Option<u64>,
    /// How many are in use within that limit.
    pub used: u64,
}

impl Misc {
    /// Takes a limit over if it leaves less room.
    pub(super) fn tighten(&mut self, limit: u64, used: u64) {
        let room = limit.saturating_sub(used);
        if self.room().is_none_or(|old| room < old) {
            (self.limit, self.used) = (Some(limit), used);
        }
    }

    /// How many more the limit allows.
    #[must_use]
    pub fn room(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used))
    }
}

/// A resource limit; None is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What counts now.
    pub soft: Option<u64>,
    /// How far this user can raise it.
    pub hard: Option<u64>,
}

/// Resource limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// RLIMIT_MEMLOCK, bytes.
    pub locked_memory: Limit,
    /// RLIMIT_NOFILE.
    pub open_files: Limit,
}

/// Where the DCAP quote service listens as it is packaged.
pub(super) const QUOTE_SERVICE: &str = "/var/run/tdx-qgs/qgs.socket";

impl Facts {
    /// Looks at this machine. Files are taken from below `root`, normally `/`; CPUID and limits are
    /// always this process's. Launches nothing and changes nothing; it may create a VM for a moment.
    #[must_use]
    pub fn gather(root: &Path) -> Self {
        const MODULES: [&str; 4] = ["kvm", "kvm_amd", "kvm_intel", "ccp"];
        const DEVICES: [&str; 5] =
            ["/dev/kvm", "/dev/sev", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"];
        let files = Files(root);
        let modules = MODULES.iter().filter_map(|&name| Some((name.into(), files.module(name)?)));
        let devices: BTreeMap<String, Access> =
            DEVICES.iter().map(|&path| (path.into(), files.device(path))).collect();
        let opens = |path: &str| devices.get(path) == Some(&Access::Opens);
        let sev_firmware = opens(SevDevice::PATH).then(|| {
            let device = SevDevice::open(&files.path(SevDevice::PATH));
            device.and_then(|device| device.platform_status()).map_err(|error| error.to_string())
        });
        Self {
            cpu: Cpu::read(),
            kernel: kernel(&files),
            modules: modules.collect(),
            kvm: opens("/dev/kvm").then(|| KvmFacts::read(&files.path("/dev/kvm"))).flatten(),
            devices,
            sev_firmware,
            iommus: files.names("sys/class/iommu"),
            iommu_group_types: files.iommu_group_types(),
            selinux: selinux(&files),
            tdx_module: files.text("sys/devices/faux/tdx_host/version"),
            quote_service: files.socket(QUOTE_SERVICE),
            misc: files.misc(),
            limits: probe::limits(),
            io_uring: probe::io_uring(),
        }
    }

    /// A parameter of a module; None if either is not there.
    #[must_use]
    pub fn parameter(&self, module: &str, name: &str) -> Option<&str> {
        self.modules.get(module)?.get(name).map(String::as_str)
    }

    /// Access to a device.
    #[must_use]
    pub fn device(&self, path: &str) -> &Access {
        self.devices.get(path).unwrap_or(&Access::Missing)
    }
}

fn selinux(files: &Files<'_>) -> Option<SeLinux> {
    let enforcing = files.text("sys/fs/selinux/enforce")? == "1";
    let context = files.text("proc/self/attr/current").unwrap_or_default();
    Some(SeLinux { enforcing, context: context.trim_end_matches('\0').to_owned() })
}

fn kernel(files: &Files<'_>) -> Kernel {
    const FLAGS: [&str; 6] = ["svm", "vmx", "sme", "sev", "sev_es", "sev_snp"];
    let mut cpu_flags = files.cpu_flags();
    cpu_flags.retain(|flag| FLAGS.contains(&flag.as_str()));
    let cpus = |which: &str| files.text(&format!("sys/devices/system/cpu/{which}"));
    Kernel {
        release: files.text("proc/sys/kernel/osrelease").unwrap_or_default(),
        cpu_flags,
        cpus: (cpus("online").unwrap_or_default(), cpus("present").unwrap_or_default()),
        smt: cpus("smt/active").is_some_and(|active| active == "1"),
        hibernation: files
            .text("sys/power/disk")
            .is_some_and(|modes| !modes.is_empty() && !modes.contains("[disabled]")),
        command_line: files.text("proc/cmdline").unwrap_or_default(),
        overcommit: files.text("proc/sys/vm/overcommit_memory").and_then(|mode| mode.parse().ok()),
    }
}
