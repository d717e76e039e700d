//! `casemate measure tdx`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_config::{ByteSize, GuestConfig};
use casemate_launch::PlatformKind;
use casemate_launch::igvm::ZeroPages;
use casemate_launch::measure::igvm::{manifest, measure_tdx};
use casemate_launch::rules::Profile;
use casemate_launch::tdx::PageOrder;
use casemate_plan::Rules;
use clap::ValueEnum;

use super::output::{Measured, Output};
use super::snp::launcher;
use super::snp_guest::firmware_name;
use super::tdx_guest::{TdxGuest, igvm_report};
use crate::commands::{OwnFirmware, igvm, number};

/// Predict MRTD and RTMRs of a TDX guest
///
/// With the built-in firmware, the default, MRTD depends on the kernel, its initial RAM disk and command
/// line, on the memory size and on the number of vCPUs. RTMR0 to RTMR2 are predicted.
///
/// With a TDVF such as OVMF, MRTD depends only on the firmware and the page order.
/// RTMR1 and RTMR2 of a direct kernel boot are those of OVMF under QEMU, whose patches to the kernel
/// depend on the sizes of initrd and memory. RTMR0 also has the guest's ACPI tables and boot variables:
/// two of its events are predicted. The guest extends RTMR3.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TDVF image such as OVMF.inteltdx.fd [default: the built-in firmware]
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// IGVM file to measure instead of firmware
    #[arg(long, value_name = "FILE", conflicts_with_all = ["firmware", "memory", "kernel"])]
    igvm: Option<PathBuf>,
    /// Compatibility mask, if the IGVM file supports TDX more than once
    #[arg(long, value_name = "MASK", requires = "igvm", value_parser = number::<u32>)]
    compatibility_mask: Option<u32>,
    /// Page order: upstream KVM (per-page) or Canonical's QEMU 8.2.2 (two-pass)
    #[arg(long, value_enum, default_value_t = Order::PerPage)]
    page_order: Order,
    /// Launcher, which determines the measured form of the kernel
    #[arg(long, default_value = "qemu", value_parser = launcher())]
    vmm: Profile,
    /// Guest memory for TD HOB and kernel [default with built-in firmware: 512M]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Kernel for a direct boot
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
    /// Number of vCPUs, measured with the built-in firmware
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    #[command(flatten)]
    own: OwnFirmware,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    PerPage,
    TwoPass,
}

impl From<Order> for PageOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::PerPage => Self::PerPage,
            Order::TwoPass => Self::TwoPass,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let measured = measured(args)?;
    args.output.print(match &args.cmdline {
        Some(line) => measured.with_line(line, false),
        None => measured,
    })
}

fn measured(args: &Args) -> anyhow::Result<Measured> {
    if let Some(igvm) = &args.igvm {
        args.own.is_for(false)?;
        return measured_igvm(args, igvm);
    }
    let config = GuestConfig {
        firmware: args.firmware.clone(),
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.cmdline.clone().unwrap_or_default(),
        vcpus: args.vcpus,
        memory: args.memory.unwrap_or(GuestConfig::default().memory),
        ..args.own.config()
    };
    let guest = TdxGuest {
        config,
        rules: Rules { launcher: Some(args.vmm), ..Rules::default() },
        order: args.page_order.into(),
        memory: args.memory,
    };
    let failed = || format!("{} cannot be measured", firmware_name(&guest.config));
    guest.measured().with_context(failed)
}

fn measured_igvm(args: &Args, path: &Path) -> anyhow::Result<Measured> {
    ensure!(
        args.page_order == Order::PerPage,
        "an IGVM file has single pages and no sections, so that there is no two-pass order for it"
    );
    let failed = || format!("{} cannot be measured", path.display());
    let mut file = igvm::open(path)?;
    let mask = args.compatibility_mask;
    let mrtd = measure_tdx(&mut file, mask).with_context(failed)?;
    igvm_report(path, mask, mrtd, move || {
        let platform = file.platform(PlatformKind::Tdx, mask)?;
        Ok(manifest(&mut file, platform, ZeroPages::Normal)?)
    })
}
