//! `casemate igvm build`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use casemate_config::{ByteSize, GuestConfig, Snp, VcpuType};
use casemate_launch::firmware::is_ours;
use casemate_launch::igvm::{IgvmFile, ZeroPages, export, with_normal_zeroes};
use casemate_launch::measure::igvm::{measure_snp, measure_tdx};
use casemate_launch::rules::CpuSignature;
use casemate_launch::tdx::PageOrder;
use casemate_launch::{Digest384, LaunchPlan, PlatformKind, SnpIdentity, snp, tdx};
use casemate_plan::{MAX_FIRMWARE, Rules, plan, read};
use serde::Serialize;

use super::Format;
use crate::commands::{OwnFirmware, number, words};

/// Build an IGVM file from a firmware image
///
/// The firmware is an OVMF image or, by default, the built-in firmware with a kernel: the file then
/// measures the hashes of the kernel and loads the kernel into shared memory.
///
/// Prints the measurement on each platform, after comparing it with the launch plan. IGVM cannot
/// represent the ZERO pages of an OVMF launch on SEV-SNP: they become measured pages of zeroes, so that
/// the digest differs from that of `casemate measure snp --firmware`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// OVMF image, or an edition of Casemate's firmware [default: built-in]
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Kernel (bzImage) for the built-in firmware
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(
        long,
        alias = "append",
        value_name = "TEXT",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    cmdline: Option<String>,
    #[command(flatten)]
    own: OwnFirmware,
    /// Platforms of the file
    #[arg(
        long = "platform",
        value_name = "NAME",
        value_parser = words::<PlatformKind>(PlatformKind::WORDS),
        value_delimiter = ',',
        default_value = "snp,tdx,plain"
    )]
    platforms: Vec<PlatformKind>,
    /// File to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// SEV-SNP: launcher of initial registers [default: qemu for OVMF, else casemate]
    #[arg(long, value_parser = ["qemu", "casemate"])]
    vmm: Option<String>,
    /// SEV-SNP: CPU model of the guest, such as EPYC-Milan
    #[arg(long, value_name = "NAME", conflicts_with = "vcpu_signature")]
    vcpu_type: Option<CpuSignature>,
    /// SEV-SNP: CPU model as CPUID leaf 1 EAX, such as 0x00a00f11
    #[arg(long, value_name = "NUMBER", value_parser = number::<u32>)]
    vcpu_signature: Option<u32>,
    /// SEV-SNP: SEV_FEATURES of the vCPU
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = number::<u64>)]
    guest_features: u64,
    /// SEV-SNP: guest policy
    #[arg(long, value_name = "BITS", default_value = "0x30000", value_parser = number::<u64>)]
    policy: u64,
    /// Guest memory for the TD HOB; with the built-in firmware a measured limit
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: ByteSize,
    /// TDX: measured limit of vCPUs for the built-in firmware
    #[arg(
        long,
        value_name = "N",
        default_value_t = VCPUS,
        value_parser = clap::value_parser!(u32).range(1..=255),
    )]
    vcpus: u32,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// KVM launches an IGVM file with one VP context and no other.
const VCPUS: u32 = 1;

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
    args.check()?;
    let rules = args.rules()?;
    let mut plans = Vec::new();
    let mut built = Vec::new();
    for platform in &args.platforms {
        let plan = planned(&args.config(*platform), *platform, &rules).with_context(|| {
            let own = || "Casemate's firmware".to_owned();
            let name = args.firmware.as_ref().map_or_else(own, |path| path.display().to_string());
            format!("{name} makes no guest")
        })?;
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

impl Args {
    /// The guest that the file is for.
    fn config(&self, platform: PlatformKind) -> GuestConfig {
        let signature = self.vcpu_signature.map(CpuSignature).or(self.vcpu_type);
        let vcpu_type = signature.map(VcpuType::from);
        GuestConfig {
            firmware: self.firmware.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone().unwrap_or_default(),
            memory: self.memory,
            vcpus: if platform == PlatformKind::Tdx { self.vcpus } else { VCPUS },
            snp: Some(Snp { vcpu_type, ..Snp::default() }),
            ..self.own.config()
        }
    }

    fn rules(&self) -> anyhow::Result<Rules> {
        let launcher = self.vmm.as_deref().map(str::parse).transpose()?;
        let (vmsa_features, guest_policy) = (Some(self.guest_features), Some(self.policy));
        let plain_firmware = true;
        Ok(Rules { launcher, vmsa_features, guest_policy, plain_firmware, ..Rules::default() })
    }

    /// Refuses what the firmware of the file has no use for.
    fn check(&self) -> anyhow::Result<()> {
        let ours = match &self.firmware {
            Some(file) => is_ours(&read("firmware", file, MAX_FIRMWARE)?),
            None => true,
        };
        self.own.is_for(ours)?;
        if !ours && self.kernel.is_some() {
            bail!("OVMF finds its kernel elsewhere; leave --kernel out, or --firmware");
        }
        if ours && self.vmm.as_deref() == Some("qemu") {
            bail!("Casemate's firmware starts with the registers of casemate; leave --vmm out");
        }
        Ok(())
    }
}

/// The plan on one platform. A file has no identity: whoever launches it adds one.
fn planned(
    config: &GuestConfig,
    platform: PlatformKind,
    rules: &Rules,
) -> anyhow::Result<LaunchPlan> {
    let mut launch = plan(config, platform, rules)?.launch;
    launch.identity = SnpIdentity::default();
    Ok(launch)
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
            PlatformKind::Snp => {
                Some(measure_snp(&mut file, None, ZeroPages::Normal)?.launch_digest())
            }
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
    let mut out = crate::commands::output();
    if format == Format::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(built)?)?;
        return Ok(());
    }
    for Built { platform, measurement, zero_pages_measured } in built {
        let digest = measurement.map_or("none".to_owned(), |digest| digest.to_string());
        writeln!(out, "{:6}  {digest}", platform.word())?;
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
