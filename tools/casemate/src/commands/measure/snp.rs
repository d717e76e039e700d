//! `casemate measure snp`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::{Digest384, LaunchPlan, PlatformKind, SnpIdentity, SnpPolicy};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde::Serialize;

use super::igvm_snp;
use super::output::{Output, Report, Row};
use crate::commands::{MAX_FIRMWARE, MAX_PAYLOAD, number, read, read_optional};

/// Compute an SEV-SNP launch digest
///
/// The digest depends on the number of vCPUs and, with the registers of QEMU, on the CPU model
/// that the guest is shown (which need not be the host's).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The guest's firmware: an OVMF image with code and variables in one file, or OVMF_CODE
    #[arg(long, value_name = "FILE", required_unless_present = "igvm")]
    firmware: Option<PathBuf>,
    #[command(flatten)]
    igvm: igvm_snp::IgvmArgs,
    /// Number of vCPUs
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=MAX_VCPUS),
        required_unless_present = "igvm",
    )]
    vcpus: Option<u32>,
    /// CPU model that the guest is shown, such as EPYC-Milan or EPYC-v4
    #[arg(long, value_name = "NAME", conflicts_with = "vcpu_signature")]
    vcpu_type: Option<CpuSignature>,
    /// The same as a number: CPUID leaf 1 EAX, such as 0x00a00f11
    #[arg(long, value_name = "NUMBER", value_parser = number::<u32>)]
    vcpu_signature: Option<u32>,
    /// SEV_FEATURES of the guest's vCPUs
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = number::<u64>)]
    guest_features: u64,
    /// Whose register values and section rules to assume
    #[arg(long, default_value = "qemu", value_parser = profile())]
    vmm: Profile,
    /// Kernel of a measured direct boot
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line of the kernel, exactly as the VMM gets it
    #[arg(long, value_name = "STRING", requires = "kernel", allow_hyphen_values = true)]
    append: Option<OsString>,
    #[command(flatten)]
    output: Output,
}

/// KVM_MAX_VCPUS on x86.
const MAX_VCPUS: i64 = 4096;

fn profile() -> impl clap::builder::TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(Profile::ALL.map(Profile::name))
        .try_map(|name| name.parse::<Profile>())
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
    kernel: Option<String>,
    initrd: Option<String>,
    append: Option<String>,
    host_rules: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.igvm.igvm {
        return igvm_snp::run(&args.igvm, path, &args.output);
    }
    let (Some(firmware), Some(vcpus)) = (&args.firmware, args.vcpus) else {
        bail!("either --firmware and --vcpus or --igvm are needed");
    };
    let plan = plan(args, firmware, vcpus)?;
    let measurement = snp::measure(&plan)?;
    let report = Report {
        platform: PlatformKind::Snp,
        measurement: measurement.launch_digest(),
        details: Details { firmware_seed: measurement.firmware_seed(&plan) },
        assumptions: assumptions(args, firmware, vcpus, &plan)?,
    };
    args.output.print(&report, rows(&report), || Ok(snp::manifest(&plan)?))?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &Args, firmware: &Path, vcpus: u32) -> anyhow::Result<LaunchPlan> {
    let image: Arc<[u8]> = read("firmware", firmware, MAX_FIRMWARE)?.into();
    let options = SnpOptions {
        profile: args.vmm,
        vcpus,
        cpu_signature: signature(args)?.unwrap_or(CpuSignature(0)),
        policy: SnpPolicy { guest_policy: DEFAULT_POLICY, vmsa_features: args.guest_features },
        kernel: kernel_hashes(args)?,
        identity: SnpIdentity::default(),
    };
    ovmf::snp_plan(&image, &options)
        .with_context(|| format!("{} cannot be measured", firmware.display()))
}

/// The signature to assume, `None` where it does not matter.
fn signature(args: &Args) -> anyhow::Result<Option<CpuSignature>> {
    if !args.vmm.uses_signature() {
        return Ok(None);
    }
    match args.vcpu_signature.map(CpuSignature).or(args.vcpu_type) {
        Some(signature) => Ok(Some(signature)),
        None => bail!(
            "with the registers of {} the digest depends on the CPU model; add --vcpu-type, such as \
             --vcpu-type EPYC-Milan, or --vcpu-signature",
            args.vmm
        ),
    }
}

fn kernel_hashes(args: &Args) -> anyhow::Result<Option<KernelHashes>> {
    let Some(kernel) = &args.kernel else { return Ok(None) };
    let kernel = read("kernel", kernel, MAX_PAYLOAD)?;
    let initrd = read_optional("initial RAM disk", args.initrd.as_deref(), MAX_PAYLOAD)?;
    let cmdline = args.append.as_ref().map_or(&[][..], |append| append.as_bytes());
    Ok(Some(KernelHashes::new(&kernel, &initrd.unwrap_or_default(), cmdline)))
}

fn assumptions(
    args: &Args,
    firmware: &Path,
    vcpus: u32,
    plan: &LaunchPlan,
) -> anyhow::Result<Assumptions> {
    let name = |path: &PathBuf| path.display().to_string();
    let mut host_rules: Vec<String> = HOST_RULES.iter().map(|&rule| rule.to_owned()).collect();
    if matches!(args.vmm, Profile::Qemu | Profile::Casemate) {
        host_rules.push(KVM_FPU_RULE.to_owned());
    }
    if args.guest_features & 1 == 0 {
        host_rules.push(
            "bit 0 of the features is clear: KVM sets it, and no SNP guest runs \
                         without; use this only to compare with other calculators"
                .to_owned(),
        );
    }
    if let Some((first, second)) = plan.overlap() {
        host_rules.push(format!(
            "{} at {} and {} at {} overlap: KVM refuses to launch this",
            first.tag, first.range, second.tag, second.range
        ));
    }
    Ok(Assumptions {
        vmm: args.vmm.name(),
        vcpus,
        vcpu_signature: signature(args)?.map(|signature| signature.to_string()),
        guest_features: format!("{:#x}", args.guest_features),
        firmware: firmware.display().to_string(),
        kernel: args.kernel.as_ref().map(name),
        initrd: args.initrd.as_ref().map(name),
        append: args.append.as_ref().map(|append| append.to_string_lossy().into_owned()),
        host_rules,
    })
}

/// The guest policy of a plan that is only measured: SMT allowed and the bit that is always one.
/// It is reported beside the digest and no part of it.
const DEFAULT_POLICY: u64 = 0x3_0000;

/// What the digest takes for granted about the host.
const HOST_RULES: [&str; 2] = [
    "pages enter as 4 KiB pages, firmware first, and the VMSAs last, vCPU 0 first, at 0xfffffffff000",
    "the host adds no SEV feature: some kernels from 6.6 to 6.8 switch debug swap on (features 0x21)",
];

const KVM_FPU_RULE: &str =
    "the host's kernel is 6.10 or later: earlier ones leave MXCSR and the x87 control word zero";

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
    let optional = [
        ("kernel", &assumptions.kernel),
        ("initrd", &assumptions.initrd),
        ("command line", &assumptions.append),
    ];
    rows.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    rows.extend(assumptions.host_rules.iter().map(|rule| ("assuming that", rule.clone())));
    rows
}
