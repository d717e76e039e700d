//! `casemate igvm build`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use casemate_config::ByteSize;
use casemate_launch::igvm::{
    IgvmFile, ZeroPages, export, measure_snp, measure_tdx, with_normal_zeroes,
};
use casemate_launch::loader_window::Payloads;
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::tdvf::ATTRIBUTE_SEPT_VE_DISABLE;
use casemate_launch::tdx::{self, PageOrder};
use casemate_launch::{
    Digest384, LaunchPlan, PlatformKind, SnpIdentity, SnpPolicy, TdxPolicy, firmware,
};
use clap::ValueEnum;
use serde::Serialize;

use super::{Format, name};
use crate::commands::measure::tdx::firmware_plan;
use crate::commands::{MAX_FIRMWARE, MAX_PAYLOAD, OwnFirmware, number, read, read_optional};

/// Make an IGVM file of a firmware image
///
/// Of an OVMF image, or of Casemate's own firmware, which is there without being named and takes a
/// kernel with it: its hashes are measured, the kernel itself enters in shared memory.
///
/// The file is for one or more platforms; what it measures to on each is printed, and checked
/// against the plan that it was made of. IGVM has no word for the ZERO pages that a launch of OVMF
/// has on SEV-SNP: they become measured pages of zeroes, and the digest is another than that of
/// `casemate measure snp --firmware`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The firmware: an OVMF image, code and variables in one file, or an edition of Casemate's own
    /// [default: Casemate's own]
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Casemate's firmware: the kernel that it starts, a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line of the kernel
    #[arg(long, value_name = "STRING", requires = "kernel", allow_hyphen_values = true)]
    append: Option<OsString>,
    #[command(flatten)]
    own: OwnFirmware,
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
    /// SEV-SNP: whose register values the vCPU starts with [default: qemu for OVMF, casemate for
    /// Casemate's own, which has no others]
    #[arg(long, value_parser = ["qemu", "casemate"])]
    vmm: Option<String>,
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
    /// The guest's memory, which the TD HOB or Casemate's loader window in the file describes;
    /// nothing of it is measured
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: ByteSize,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// KVM launches an IGVM file with one VP context and no other.
const VCPUS: u32 = 1;

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
    let source = Source::new(args)?;
    let mut plans = Vec::new();
    let mut built = Vec::new();
    for target in &args.platforms {
        let plan = source.plan(args, *target).with_context(|| {
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

/// What the file is made of.
enum Source {
    Ovmf(Arc<[u8]>),
    Own(Arc<[u8]>, Box<Payloads>),
}

impl Source {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let image: Arc<[u8]> = match &args.firmware {
            Some(path) => read("firmware", path, MAX_FIRMWARE)?.into(),
            None => Arc::from(args.own.image()),
        };
        let ours = firmware::is_ours(&image);
        args.own.is_for(ours)?;
        if !ours {
            if args.kernel.is_some() {
                bail!("OVMF finds its kernel elsewhere; leave --kernel out, or --firmware");
            }
            return Ok(Self::Ovmf(image));
        }
        let Some(kernel) = &args.kernel else {
            bail!("Casemate's firmware starts a kernel and nothing else; add --kernel");
        };
        let payloads = Payloads {
            kernel: read("kernel", kernel, MAX_PAYLOAD)?.into(),
            initrd: read_optional("initrd", args.initrd.as_deref(), MAX_PAYLOAD)?
                .unwrap_or_default()
                .into(),
            cmdline: args.append.as_deref().unwrap_or_default().as_bytes().into(),
            memory: args.memory.0,
            vcpus: VCPUS,
        };
        Ok(Self::Own(image, Box::new(payloads)))
    }

    fn plan(&self, args: &Args, target: Target) -> anyhow::Result<LaunchPlan> {
        let policy = SnpPolicy { guest_policy: args.policy, vmsa_features: args.guest_features };
        let flags = args.own.flags();
        Ok(match (self, target) {
            (Self::Own(image, payloads), Target::Snp) => {
                if args.vmm.as_deref() == Some("qemu") {
                    bail!("it starts with the registers of casemate; leave --vmm out");
                }
                firmware::snp_guest(image, flags, payloads, policy, SnpIdentity::default())?
            }
            (Self::Own(image, payloads), Target::Plain) => {
                firmware::plain_plan(image, flags, payloads)?
            }
            (Self::Own(image, payloads), Target::Tdx) => {
                let policy = TdxPolicy::new(ATTRIBUTE_SEPT_VE_DISABLE);
                firmware::tdx_guest(image, flags, payloads, policy)?
            }
            (Self::Ovmf(image), Target::Plain) => ovmf::plain_plan(image)?,
            (Self::Ovmf(image), Target::Tdx) => firmware_plan(image, Some(args.memory.0))?,
            (Self::Ovmf(image), Target::Snp) => ovmf_snp(args, image, policy)?,
        })
    }
}

fn ovmf_snp(args: &Args, image: &Arc<[u8]>, policy: SnpPolicy) -> anyhow::Result<LaunchPlan> {
    let profile: Profile = args.vmm.as_deref().unwrap_or("qemu").parse()?;
    let signature = args.vcpu_signature.map(CpuSignature).or(args.vcpu_type);
    if signature.is_none() && profile.uses_signature() {
        bail!(
            "with the registers of {profile} the digest depends on the CPU model; add \
             --vcpu-type, such as --vcpu-type EPYC-Milan, or --vcpu-signature"
        );
    }
    let options = SnpOptions {
        profile,
        vcpus: VCPUS,
        cpu_signature: signature.unwrap_or(CpuSignature(0)),
        policy,
        kernel: None,
        identity: SnpIdentity::default(),
    };
    Ok(ovmf::snp_plan(image, &options)?)
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
    let mut out = crate::commands::output();
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
