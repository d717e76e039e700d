//! `casemate measure snp`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::igvm_snp;
use super::output::Output;
use super::snp_guest::SnpGuest;
use crate::commands::{OwnFirmware, number};

/// Compute an SEV-SNP launch digest
///
/// The digest depends on the number of vCPUs and, with the registers of QEMU, on the CPU model
/// that the guest is shown (which need not be the host's).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The guest's firmware: an OVMF image with code and variables in one file, or OVMF_CODE; with
    /// --vmm casemate, Casemate's own is the default
    #[arg(long, value_name = "FILE")]
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
    #[command(flatten)]
    cpu: Cpu,
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
    own: OwnFirmware,
    #[command(flatten)]
    output: Output,
}

/// The CPU model that the guest is shown.
#[derive(clap::Args, Default)]
pub(super) struct Cpu {
    /// CPU model that the guest is shown, such as EPYC-Milan or EPYC-v4
    #[arg(long, value_name = "NAME", conflicts_with = "vcpu_signature")]
    vcpu_type: Option<CpuSignature>,
    /// The same as a number: CPUID leaf 1 EAX, such as 0x00a00f11
    #[arg(long, value_name = "NUMBER", value_parser = number::<u32>)]
    vcpu_signature: Option<u32>,
}

impl Cpu {
    pub(super) fn signature(&self) -> Option<CpuSignature> {
        self.vcpu_signature.map(CpuSignature).or(self.vcpu_type)
    }
}

/// KVM_MAX_VCPUS on x86.
const MAX_VCPUS: i64 = 4096;

fn profile() -> impl clap::builder::TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(Profile::ALL.map(Profile::name))
        .try_map(|name| name.parse::<Profile>())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.igvm.igvm {
        return args.output.print(igvm_snp::measured(&args.igvm, path)?);
    }
    let Some(vcpus) = args.vcpus else { bail!("either --vcpus or --igvm is needed") };
    if args.firmware.is_none() && args.vmm != Profile::Casemate {
        bail!("--firmware is needed; only --vmm casemate has a firmware of its own");
    }
    let guest = SnpGuest {
        firmware: args.firmware.clone(),
        vcpus,
        signature: args.cpu.signature(),
        features: args.guest_features,
        profile: args.vmm,
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        append: args.append.clone(),
        own: args.own,
    };
    let measured = guest.measured()?;
    args.output.print(match &guest.append {
        Some(line) => measured.with_line(&line.to_string_lossy(), false),
        None => measured,
    })
}
