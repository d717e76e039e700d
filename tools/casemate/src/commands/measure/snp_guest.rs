//! An SEV-SNP guest in files and numbers, from flags or from a configuration.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::{Digest384, LaunchPlan, PlatformKind, SnpIdentity, SnpPolicy, firmware};
use serde::Serialize;

use super::output::{Measured, Report, Row};
use crate::commands::{MAX_FIRMWARE, MAX_PAYLOAD, OwnFirmware, read, read_optional};

/// Everything that the launch digest depends on.
pub(super) struct SnpGuest {
    /// Casemate's own if there is none.
    pub(super) firmware: Option<PathBuf>,
    pub(super) vcpus: u32,
    /// May be left out where the profile does not use it.
    pub(super) signature: Option<CpuSignature>,
    pub(super) features: u64,
    pub(super) profile: Profile,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) append: Option<OsString>,
    pub(super) own: OwnFirmware,
}

#[derive(Serialize)]
struct Details {
    /// The digest after the firmware's pages alone.
    firmware_seed: Option<Digest384>,
}

#[derive(Serialize)]
struct Assumptions {
    vmm: &'static str,
    vcpus: u32,
    /// Null where this VMM's registers do not depend on it.
    vcpu_signature: Option<String>,
    guest_features: String,
    firmware: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    firmware_notes: Vec<&'static str>,
    kernel: Option<String>,
    initrd: Option<String>,
    append: Option<String>,
    host_rules: Vec<String>,
}

/// The guest policy of a plan that is only measured: SMT allowed and the bit that is always one.
/// It is reported beside the digest and no part of it.
const ANY_POLICY: u64 = 0x3_0000;

/// What the digest takes for granted about the host.
const HOST_RULES: [&str; 2] = [
    "pages enter as 4 KiB pages, firmware first, and the VMSAs last, vCPU 0 first, at 0xfffffffff000",
    "the host adds no SEV feature: some kernels from 6.6 to 6.8 switch debug swap on (features 0x21)",
];

const NO_SNP_BIT: &str = "bit 0 of the features is clear: KVM sets it, and no SNP guest runs without; use this \
     only to compare with other calculators";

const KVM_FPU_RULE: &str =
    "the host's kernel is 6.10 or later: earlier ones leave MXCSR and the x87 control word zero";

impl SnpGuest {
    pub(super) fn measured(&self) -> anyhow::Result<Measured> {
        let plan = self.plan()?;
        let measurement = snp::measure(&plan)?;
        let report = Report {
            platform: PlatformKind::Snp,
            measurement: measurement.launch_digest(),
            details: Details { firmware_seed: measurement.firmware_seed(&plan) },
            assumptions: self.assumptions(&plan)?,
        };
        report.measured(rows(&report), move || Ok(snp::manifest(&plan)?))
    }

    fn plan(&self) -> anyhow::Result<LaunchPlan> {
        let image: Arc<[u8]> = match &self.firmware {
            Some(path) => read("firmware", path, MAX_FIRMWARE)?.into(),
            None => Arc::from(self.own.image()),
        };
        let options = SnpOptions {
            profile: self.profile,
            vcpus: self.vcpus,
            cpu_signature: self.signature()?.unwrap_or(CpuSignature(0)),
            policy: SnpPolicy { guest_policy: ANY_POLICY, vmsa_features: self.features },
            kernel: self.kernel_hashes()?,
            identity: SnpIdentity::default(),
        };
        let failed = || format!("{} cannot be measured", self.firmware_name());
        self.own.is_for(self.profile == Profile::Casemate)?;
        if self.profile == Profile::Casemate {
            firmware::snp_plan(&image, self.own.flags(), &options).with_context(failed)
        } else {
            ovmf::snp_plan(&image, &options).with_context(failed)
        }
    }

    fn firmware_name(&self) -> String {
        let own = || "Casemate's firmware".to_owned();
        self.firmware.as_ref().map_or_else(own, |path| path.display().to_string())
    }

    /// The signature to assume, `None` where it does not matter.
    fn signature(&self) -> anyhow::Result<Option<CpuSignature>> {
        if !self.profile.uses_signature() {
            return Ok(None);
        }
        if self.signature.is_none() {
            bail!(
                "with the registers of {} the digest depends on the CPU model; add --vcpu-type, \
                 such as --vcpu-type EPYC-Milan, or --vcpu-signature",
                self.profile
            );
        }
        Ok(self.signature)
    }

    fn kernel_hashes(&self) -> anyhow::Result<Option<KernelHashes>> {
        let Some(kernel) = &self.kernel else { return Ok(None) };
        let kernel = read("kernel", kernel, MAX_PAYLOAD)?;
        let initrd = read_optional("initial RAM disk", self.initrd.as_deref(), MAX_PAYLOAD)?;
        let cmdline = self.append.as_ref().map_or(&[][..], |append| append.as_bytes());
        Ok(Some(KernelHashes::new(&kernel, &initrd.unwrap_or_default(), cmdline)))
    }

    fn assumptions(&self, plan: &LaunchPlan) -> anyhow::Result<Assumptions> {
        let name = |path: &PathBuf| path.display().to_string();
        let mut host_rules: Vec<String> = HOST_RULES.iter().map(|&rule| rule.to_owned()).collect();
        if matches!(self.profile, Profile::Qemu | Profile::Casemate) {
            host_rules.push(KVM_FPU_RULE.to_owned());
        }
        if self.features & 1 == 0 {
            host_rules.push(NO_SNP_BIT.to_owned());
        }
        if let Some((first, second)) = plan.overlap() {
            host_rules.push(format!(
                "{} at {} and {} at {} overlap: KVM refuses to launch this",
                first.tag, first.range, second.tag, second.range
            ));
        }
        Ok(Assumptions {
            vmm: self.profile.name(),
            vcpus: self.vcpus,
            vcpu_signature: self.signature()?.map(|signature| signature.to_string()),
            guest_features: format!("{:#x}", self.features),
            firmware: self.firmware_name(),
            firmware_notes: self.own.notes(),
            kernel: self.kernel.as_ref().map(name),
            initrd: self.initrd.as_ref().map(name),
            append: self.append.as_ref().map(|append| append.to_string_lossy().into_owned()),
            host_rules,
        })
    }
}

fn rows(report: &Report<Details, Assumptions>) -> Vec<Row> {
    let assumptions = &report.assumptions;
    let mut rows = vec![("platform", "SEV-SNP".to_owned())];
    if let Some(seed) = report.details.firmware_seed {
        rows.push(("firmware seed", seed.to_string()));
    }
    rows.extend([
        ("registers of", assumptions.vmm.to_owned()),
        ("vCPUs", assumptions.vcpus.to_string()),
        (
            "vCPU signature",
            assumptions.vcpu_signature.clone().unwrap_or_else(|| "does not matter".to_owned()),
        ),
        ("guest features", assumptions.guest_features.clone()),
        ("firmware", assumptions.firmware.clone()),
    ]);
    rows.extend(assumptions.firmware_notes.iter().map(|note| ("firmware", (*note).to_owned())));
    let optional = [
        ("kernel", &assumptions.kernel),
        ("initrd", &assumptions.initrd),
        ("command line", &assumptions.append),
    ];
    rows.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    rows.extend(assumptions.host_rules.iter().map(|rule| ("assuming that", rule.clone())));
    rows
}
