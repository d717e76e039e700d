//! The measurement of an SEV-SNP guest, and what it assumes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use casemate_config::GuestConfig;
use casemate_launch::rules::Profile;
use casemate_launch::sev_metadata::SevMetadata;
use casemate_launch::snp::{self, FirmwareDigest};
use casemate_launch::{Contents, Digest384, LaunchPlan, PlatformKind, Policy};
use casemate_plan::{Boot, GuestPlan, Rules, launch_digest, plan};
use serde::Serialize;

use super::output::{Measured, Report, Row};
use crate::commands::{firmware_notes, read};

/// Limit for the file of a firmware digest in bytes.
const MAX_DIGEST: usize = 1 << 20;

/// A guest, and the rules of its launcher.
pub(super) struct SnpGuest {
    pub(super) config: GuestConfig,
    pub(super) rules: Rules,
}

#[derive(Serialize)]
struct Details {
    /// The digest after the firmware's pages alone, and what else of the image a launch digest needs.
    #[serde(flatten)]
    firmware: Option<FirmwareDigest>,
}

#[derive(Serialize)]
struct Assumptions {
    vmm: &'static str,
    /// The version of the launcher's rules.
    rules: &'static str,
    vcpus: u32,
    /// Null where it does not matter.
    memory: Option<u64>,
    /// Null where this VMM's registers do not depend on it.
    vcpu_signature: Option<String>,
    guest_features: String,
    firmware: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    firmware_notes: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    svsm: Option<String>,
    kernel: Option<String>,
    initrd: Option<String>,
    append: Option<String>,
    host_rules: Vec<String>,
}

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
        let plan = plan(&self.config, PlatformKind::Snp, &self.rules)?;
        let measurement = snp::measure(&plan.launch)?;
        let memory = matches!(plan.boot, Boot::Window(_)).then_some(self.config.memory.0);
        // Under an SVSM, other pages follow.
        let seed = measurement.firmware_seed(&plan.launch).filter(|_| self.rules.svsm.is_none());
        let report = Report {
            platform: PlatformKind::Snp,
            measurement: measurement.launch_digest(),
            details: Details { firmware: seed.map(|seed| firmware_digest(seed, &plan)) },
            assumptions: self.assumptions(plan.launcher, features(&plan.launch), memory),
        };
        report.measured(rows(&report), move || Ok(snp::manifest(&plan.launch)?))
    }

    /// The measurement of the same guest, of whose firmware only the digest is known.
    pub(super) fn resumed(&self, file: &Path) -> anyhow::Result<Measured> {
        let text = read("firmware digest", file, MAX_DIGEST)?;
        let firmware: FirmwareDigest = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is not a firmware digest, as `casemate measure snp --format json` prints it",
                file.display()
            )
        })?;
        let launcher = self.rules.launcher.unwrap_or_default();
        let mut assumptions =
            self.assumptions(launcher, self.rules.vmsa_features.unwrap_or(1), None);
        assumptions.firmware = format!("the firmware of {}", file.display());
        let report = Report {
            platform: PlatformKind::Snp,
            measurement: launch_digest(&firmware, &self.config, &self.rules)?,
            details: Details { firmware: Some(firmware) },
            assumptions,
        };
        report.measured(rows(&report), || {
            bail!("a manifest lists the pages of the firmware: pass the image with --firmware")
        })
    }

    fn assumptions(&self, launcher: Profile, features: u64, memory: Option<u64>) -> Assumptions {
        let config = &self.config;
        let mut host_rules: Vec<String> = HOST_RULES.iter().map(|&rule| rule.to_owned()).collect();
        if launcher.runs_on_kvm() {
            host_rules.push(KVM_FPU_RULE.to_owned());
        }
        if features & 1 == 0 {
            host_rules.push(NO_SNP_BIT.to_owned());
        }
        let model = config.snp.as_ref().and_then(|snp| snp.vcpu_type.as_ref()?.signature());
        let model = model.filter(|_| launcher.uses_signature() && config.igvm.is_none());
        let name = |path: &PathBuf| path.display().to_string();
        Assumptions {
            vmm: launcher.name(),
            rules: launcher.rules(),
            vcpus: config.vcpus,
            memory,
            vcpu_signature: model.map(|signature| signature.to_string()),
            guest_features: format!("{features:#x}"),
            firmware: firmware_name(config),
            firmware_notes: firmware_notes(config),
            svsm: self.rules.svsm.as_ref().map(|below| name(&below.file)),
            kernel: config.kernel.as_ref().map(name),
            initrd: config.initrd.as_ref().map(name),
            append: config.kernel.is_some().then(|| config.cmdline.clone()),
            host_rules,
        }
    }
}

/// SEV_FEATURES of the plan's vCPUs.
fn features(plan: &LaunchPlan) -> u64 {
    match &plan.policy {
        Policy::Snp(policy) => policy.vmsa_features,
        Policy::Plain | Policy::Tdx(_) => 0,
    }
}

/// The digest of the plan's firmware, for guests of other vCPUs and kernels. Casemate's own serves one
/// kernel, and so has the digest alone.
fn firmware_digest(seed: Digest384, plan: &GuestPlan) -> FirmwareDigest {
    let metadata = match (&plan.boot, plan.launch.imports.first().map(|import| &import.contents)) {
        (Boot::FirmwareConfig(_), Some(Contents::Bytes(image))) => SevMetadata::parse(image).ok(),
        _ => None,
    };
    let none = SevMetadata { sections: Vec::new(), ap_reset: None, hash_table: None };
    FirmwareDigest::new(seed, &metadata.unwrap_or(none))
}

/// The file that the guest starts in, for people.
pub(super) fn firmware_name(config: &GuestConfig) -> String {
    let file: Option<&Path> = config.igvm.as_deref().or(config.firmware.as_deref());
    file.map_or_else(|| "Casemate's firmware".to_owned(), |file| file.display().to_string())
}

fn rows(report: &Report<Details, Assumptions>) -> Vec<Row> {
    let assumptions = &report.assumptions;
    let mut rows = vec![("platform", "SEV-SNP".to_owned())];
    if let Some(firmware) = &report.details.firmware {
        rows.push(("firmware seed", firmware.firmware_seed.to_string()));
    }
    rows.extend([
        ("rules of", assumptions.rules.to_owned()),
        ("vCPUs", assumptions.vcpus.to_string()),
        (
            "memory",
            assumptions
                .memory
                .map_or("does not matter".to_owned(), |bytes| format!("{bytes} bytes")),
        ),
        (
            "vCPU signature",
            assumptions.vcpu_signature.clone().unwrap_or_else(|| "does not matter".to_owned()),
        ),
        ("guest features", assumptions.guest_features.clone()),
        ("firmware", assumptions.firmware.clone()),
    ]);
    rows.extend(assumptions.firmware_notes.iter().map(|note| ("firmware", (*note).to_owned())));
    let optional = [
        ("SVSM", &assumptions.svsm),
        ("kernel", &assumptions.kernel),
        ("initrd", &assumptions.initrd),
        ("command line", &assumptions.append),
    ];
    rows.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    rows.extend(assumptions.host_rules.iter().map(|rule| ("assuming that", rule.clone())));
    rows
}
