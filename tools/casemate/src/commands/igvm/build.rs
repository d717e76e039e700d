//! `casemate igvm build`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use casemate_config::ByteSize;
use casemate_launch::igvm::{
    IgvmFile, ZeroPages, export, measure_snp, measure_tdx, with_normal_zeroes,
};
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::tdx::{self, PageOrder};
use casemate_launch::{Digest384, LaunchPlan, PlatformKind, SnpIdentity, SnpPolicy};
use clap::ValueEnum;
use serde::Serialize;

use super::{Format, name};
use crate::commands::measure::tdx::firmware_plan;
use crate::commands::{MAX_FIRMWARE, number, read};

/// Make an IGVM file of a firmware image
///
/// The file is for one or more platforms; what it measures to on each is printed, and checked
/// against the plan that it was made of. IGVM has no word for the ZERO pages that a launch of OVMF
/// has on SEV-SNP: they become measured pages of zeroes, and the digest is another than that of
/// `casemate measure snp --firmware`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The firmware: an OVMF image, code and variables in one file
    #[arg(long, value_name = "FILE")]
    firmware: PathBuf,
    /// The platforms that the file is for
    #[arg(
        long = "platform",
        value_name = "NAME",
        value_enum,
        value_delimiter = ',',
        default_value = "snp,tdx,plain"
    )]
    platforms: Vec<Target>,
    /// Where to write the IGVM file
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// SEV-SNP: whose register values the vCPU starts with
    #[arg(long, default_value = "qemu", value_parser = ["qemu", "casemate"])]
    vmm: String,
    /// SEV-SNP: CPU model that the guest is shown, such as EPYC-Milan
    #[arg(long, value_name = "NAME", conflicts_with = "vcpu_signature")]
    vcpu_type: Option<CpuSignature>,
    /// SEV-SNP: the same as a number, CPUID leaf 1 EAX, such as 0x00a00f11
    #[arg(long, value_name = "NUMBER", value_parser = number::<u32>)]
    vcpu_signature: Option<u32>,
    /// SEV-SNP: SEV_FEATURES of the guest's vCPU
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = number::<u64>)]
    guest_features: u64,
    /// SEV-SNP: the guest policy
    #[arg(long, value_name = "BITS", default_value = "0x30000", value_parser = number::<u64>)]
    policy: u64,
    /// TDX: the guest's memory, which the TD HOB in the file describes; it is not in MRTD
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: ByteSize,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Snp,
    Tdx,
    Plain,
}

/// What was built for one platform.
#[derive(Serialize)]
struct Built {
    platform: PlatformKind,
    /// Null for a platform that measures nothing.
    measurement: Option<Digest384>,
    /// Pages that IGVM could not have as ZERO pages.
    zero_pages_measured: u64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let image: Arc<[u8]> = read("firmware", &args.firmware, MAX_FIRMWARE)?.into();
    let mut plans = Vec::new();
    let mut built = Vec::new();
    for target in &args.platforms {
        let plan = plan(args, *target, &image)
            .with_context(|| format!("{} makes no guest", args.firmware.display()))?;
        let (plan, zero_pages_measured) = with_normal_zeroes(plan);
        let (platform, measurement) = (plan.platform(), measurement(&plan)?);
        built.push(Built { platform, measurement, zero_pages_measured });
        plans.push(plan);
    }
    let bytes = export(&plans)?;
    check(&bytes, &built)?;
    std::fs::write(&args.out, &bytes)
        .with_context(|| format!("could not write {}", args.out.display()))?;
    print(args.format, &built)?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &Args, target: Target, image: &Arc<[u8]>) -> anyhow::Result<LaunchPlan> {
    Ok(match target {
        Target::Plain => ovmf::plain_plan(image)?,
        Target::Tdx => firmware_plan(image, Some(args.memory.0))?,
        Target::Snp => {
            let profile: Profile = args.vmm.parse()?;
            let signature = args.vcpu_signature.map(CpuSignature).or(args.vcpu_type);
            if signature.is_none() && profile.uses_signature() {
                bail!(
                    "with the registers of {profile} the digest depends on the CPU model; add \
                     --vcpu-type, such as --vcpu-type EPYC-Milan, or --vcpu-signature"
                );
            }
            let options = SnpOptions {
                profile,
                // KVM launches an IGVM file with one VP context and no other.
                vcpus: 1,
                cpu_signature: signature.unwrap_or(CpuSignature(0)),
                policy: SnpPolicy { guest_policy: args.policy, vmsa_features: args.guest_features },
                kernel: None,
                identity: SnpIdentity::default(),
            };
            ovmf::snp_plan(image, &options)?
        }
    })
}

fn measurement(plan: &LaunchPlan) -> anyhow::Result<Option<Digest384>> {
    Ok(match plan.platform() {
        PlatformKind::Plain => None,
        PlatformKind::Snp => Some(snp::measure(plan)?.launch_digest()),
        PlatformKind::Tdx => Some(tdx::mrtd(plan, PageOrder::PerPage)?),
    })
}

/// Reads the file back: a file that measures to something else than its plans is never written.
fn check(bytes: &[u8], built: &[Built]) -> anyhow::Result<()> {
    let mut file = IgvmFile::open(std::io::Cursor::new(bytes))?;
    for Built { platform, measurement, .. } in built {
        let found = match platform {
            PlatformKind::Plain => None,
            PlatformKind::Snp => Some(measure_snp(&mut file, None, ZeroPages::Normal)?.file),
            PlatformKind::Tdx => Some(measure_tdx(&mut file, None)?),
        };
        ensure!(
            found == *measurement,
            "the file made for {platform:?} does not measure as planned"
        );
    }
    Ok(())
}

fn print(format: Format, built: &[Built]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if format == Format::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(built)?)?;
        return Ok(());
    }
    for Built { platform, measurement, zero_pages_measured } in built {
        let digest = measurement.map_or("none".to_owned(), |digest| digest.to_string());
        writeln!(out, "{:6}  {digest}", name(*platform))?;
        if *zero_pages_measured > 0 {
            writeln!(
                out,
                "        {zero_pages_measured} ZERO pages became measured pages of zeroes: this is \
                 not the digest of casemate measure snp --firmware"
            )?;
        }
    }
    Ok(())
}
