//! The measurement of an SEV-SNP guest, and what it assumes.

use std::path::{Path, PathBuf};

use casemate_config::GuestConfig;
use casemate_launch::snp;
use casemate_launch::{Digest384, PlatformKind, Policy};
use casemate_plan::{Boot, GuestPlan, Rules, plan};
use serde::Serialize;

use super::output::{Measured, Report, Row};
use crate::commands::firmware_notes;

/// A guest, and the rules of its launcher.
pub(super) struct SnpGuest {
    pub(super) config: GuestConfig,
    pub(super) rules: Rules,
}

#[derive(Serialize)]
struct Details {
    /// The digest after the firmware's pages alone.
    firmware_seed: Option<Digest384>,
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
        let report = Report {
            platform: PlatformKind::Snp,
            measurement: measurement.launch_digest(),
            details: Details { firmware_seed: measurement.firmware_seed(&plan.launch) },
            assumptions: self.assumptions(&plan),
        };
        report.measured(rows(&report), move || Ok(snp::manifest(&plan.launch)?))
    }

    fn assumptions(&self, plan: &GuestPlan) -> Assumptions {
        let config = &self.config;
        let features = match &plan.launch.policy {
            Policy::Snp(policy) => policy.vmsa_features,
            Policy::Plain | Policy::Tdx(_) => 0,
        };
        let mut host_rules: Vec<String> = HOST_RULES.iter().map(|&rule| rule.to_owned()).collect();
        if plan.launcher.runs_on_kvm() {
            host_rules.push(KVM_FPU_RULE.to_owned());
        }
        if features & 1 == 0 {
            host_rules.push(NO_SNP_BIT.to_owned());
        }
        let model = config.snp.as_ref().and_then(|snp| snp.vcpu_type.as_ref()?.signature());
        let model = model.filter(|_| plan.launcher.uses_signature() && config.igvm.is_none());
        let name = |path: &PathBuf| path.display().to_string();
        Assumptions {
            vmm: plan.launcher.name(),
            rules: plan.launcher.rules(),
            vcpus: config.vcpus,
            memory: matches!(plan.boot, Boot::Window(_)).then_some(config.memory.0),
            vcpu_signature: model.map(|signature| signature.to_string()),
            guest_features: format!("{features:#x}"),
            firmware: firmware_name(config),
            firmware_notes: firmware_notes(config),
            kernel: config.kernel.as_ref().map(name),
            initrd: config.initrd.as_ref().map(name),
            append: config.kernel.is_some().then(|| config.cmdline.clone()),
            host_rules,
        }
    }
}

/// The file that the guest starts in, for people.
pub(super) fn firmware_name(config: &GuestConfig) -> String {
    let file: Option<&Path> = config.igvm.as_deref().or(config.firmware.as_deref());
    file.map_or_else(|| "Casemate's firmware".to_owned(), |file| file.display().to_string())
}

fn rows(report: &Report<Details, Assumptions>) -> Vec<Row> {
    let assumptions = &report.assumptions;
    let mut rows = vec![("platform", "SEV-SNP".to_owned())];
    if let Some(seed) = report.details.firmware_seed {
        rows.push(("firmware seed", seed.to_string()));
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
        ("kernel", &assumptions.kernel),
        ("initrd", &assumptions.initrd),
        ("command line", &assumptions.append),
    ];
    rows.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    rows.extend(assumptions.host_rules.iter().map(|rule| ("assuming that", rule.clone())));
    rows
}
