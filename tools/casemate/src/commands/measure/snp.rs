//! `casemate measure snp`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use casemate_config::{ByteSize, GuestConfig, Snp, VcpuType};
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_plan::{Rules, Svsm};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::igvm_snp;
use super::output::Output;
use super::snp_guest::{SnpGuest, firmware_name};
use crate::commands::{OwnFirmware, number};

/// Predict an SEV-SNP launch digest
///
/// The digest depends on the number of vCPUs. With QEMU's registers it also depends on the CPU model of
/// the guest, which may differ from the host's.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// OVMF image, or OVMF_CODE [default with --vmm casemate: the built-in firmware]
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Firmware digest instead of the image: JSON report of another guest
    ///
    /// With it the guest is measured without the firmware file. The report is that of `casemate measure
    /// snp --firmware FILE --format json`, of any number of vCPUs and any kernel; dstack's names of the
    /// same values are read, too.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["firmware", "igvm", "memory"])]
    firmware_digest: Option<PathBuf>,
    /// SVSM image that QEMU launches below the firmware
    #[arg(long, value_name = "FILE", requires_all = ["firmware", "variables_size"],
          conflicts_with_all = ["igvm", "kernel"])]
    svsm: Option<PathBuf>,
    /// Size of the firmware's variables, which lie between it and the SVSM
    #[arg(long, alias = "vars-size", value_name = "SIZE", requires = "svsm")]
    variables_size: Option<ByteSize>,
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
    /// Guest memory for the built-in firmware, such as 4G [default: 512M]
    #[arg(long, value_name = "SIZE", conflicts_with = "igvm")]
    memory: Option<ByteSize>,
    #[command(flatten)]
    cpu: Cpu,
    /// SEV_FEATURES of the vCPUs
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = number::<u64>)]
    guest_features: u64,
    /// Launcher, which determines initial registers and section rules
    #[arg(long, default_value = "qemu", value_parser = launcher())]
    vmm: Profile,
    /// Kernel for a measured direct boot
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line, exactly as the VMM receives it
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
    #[command(flatten)]
    output: Output,
}

/// The CPU model that the guest is shown.
#[derive(clap::Args, Default)]
pub(super) struct Cpu {
    /// CPU model of the guest, such as EPYC-Milan or EPYC-v4
    #[arg(long, value_name = "NAME", conflicts_with = "vcpu_signature")]
    vcpu_type: Option<CpuSignature>,
    /// CPU model of the guest as a number: CPUID leaf 1 EAX, such as 0x00a00f11
    #[arg(long, value_name = "NUMBER", value_parser = number::<u32>)]
    vcpu_signature: Option<u32>,
}

impl Cpu {
    /// The value of `snp.vcpu_type`.
    pub(super) fn model(&self) -> Option<VcpuType> {
        self.signature().map(VcpuType::from)
    }

    pub(super) fn signature(&self) -> Option<CpuSignature> {
        self.vcpu_signature.map(CpuSignature).or(self.vcpu_type)
    }
}

/// KVM_MAX_VCPUS on x86.
const MAX_VCPUS: i64 = 4096;

/// A parser for the names of launchers.
pub(super) fn launcher() -> impl clap::builder::TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(Profile::NAMES).try_map(|name| name.parse::<Profile>())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.igvm.igvm {
        return args.output.print(igvm_snp::measured(&args.igvm, path, args.vmm)?);
    }
    let Some(vcpus) = args.vcpus else { bail!("either --vcpus or --igvm is needed") };
    let digest = args.firmware_digest.as_deref();
    if args.firmware.is_none() && digest.is_none() && args.vmm != Profile::Casemate {
        bail!("--firmware is needed; only --vmm casemate has a firmware of its own");
    }
    args.own.is_for(args.vmm == Profile::Casemate)?;
    let config = GuestConfig {
        firmware: args.firmware.clone(),
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone().unwrap_or_default(),
        memory: args.memory.unwrap_or(GuestConfig::default().memory),
        vcpus,
        snp: Some(Snp { vcpu_type: args.cpu.model(), ..Snp::default() }),
        ..args.own.config()
    };
    let (launcher, vmsa_features) = (Some(args.vmm), Some(args.guest_features));
    let svsm = args.svsm.clone().zip(args.variables_size);
    let svsm = svsm.map(|(file, ByteSize(variables))| Svsm { file, variables });
    let rules = Rules { launcher, vmsa_features, svsm, ..Rules::default() };
    let name = digest.map_or_else(|| firmware_name(&config), |file| file.display().to_string());
    let guest = SnpGuest { config, rules };
    let measured = match digest {
        Some(file) => guest.resumed(file),
        None => guest.measured(),
    };
    let measured = measured.with_context(|| format!("{name} cannot be measured"))?;
    args.output.print(match &args.cmdline {
        Some(line) => measured.with_line(line, false),
        None => measured,
    })
}
