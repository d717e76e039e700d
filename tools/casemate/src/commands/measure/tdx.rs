//! `casemate measure tdx`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_config::{ByteSize, GuestConfig};
use casemate_launch::igvm::{IgvmFile, ZeroPages, manifest, measure_tdx};
use casemate_launch::loader_window::Payloads;
use casemate_launch::manifest::Manifest;
use casemate_launch::tdvf::{self, ATTRIBUTE_SEPT_VE_DISABLE, SectionKind, Tdvf, hob};
use casemate_launch::tdx::rtmr::{DirectBoot, Initrd};
use casemate_launch::tdx::{self, PageOrder};
use casemate_launch::{Digest384, LaunchPlan, PlatformKind, TdxPolicy, firmware};
use clap::ValueEnum;
use serde::Serialize;

use super::output::{Measured, Output, Report, Row};
use crate::commands::{MAX_FIRMWARE, MAX_PAYLOAD, OwnFirmware, igvm, number, read, read_optional};

/// Compute the MRTD of a TDX guest, and the RTMRs that can be known
///
/// With Casemate's own firmware, which is measured if no other is given, MRTD depends on the kernel,
/// its initial RAM disk and its command line, and RTMR0 to RTMR2 are known (RTMR0 with --memory).
///
/// With a TDVF such as OVMF:
/// MRTD depends on the firmware and on the page order alone, not on memory size or number of vCPUs.
/// RTMR1 and RTMR2 of a direct kernel boot are those of OVMF under QEMU, whose patches to the kernel
/// depend on the sizes of initrd and memory. RTMR0 needs the guest's ACPI tables and boot variables,
/// so that only two of its events can be known; RTMR3 is the guest's own.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The guest's firmware: a TDVF such as OVMF.inteltdx.fd, code and variables in one file
    /// [default: Casemate's own]
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// An IGVM file instead of firmware
    #[arg(long, value_name = "FILE", conflicts_with_all = ["firmware", "memory", "kernel"])]
    igvm: Option<PathBuf>,
    /// Which platform of the IGVM file; needed if it has TDX more than once
    #[arg(long, value_name = "MASK", requires = "igvm", value_parser = number::<u32>)]
    compatibility_mask: Option<u32>,
    /// In which order pages are added and measured: as upstream KVM does, or as Canonical's QEMU
    /// 8.2.2
    #[arg(long, value_enum, default_value_t = Order::PerPage)]
    page_order: Order,
    /// The guest's memory, such as 4G; needed for the TD HOB's event and for a kernel
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Kernel of a direct boot
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line of the kernel, exactly as the VMM gets it
    #[arg(long, value_name = "STRING", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// Number of vCPUs; with Casemate's own firmware RTMR0 depends on it
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

#[derive(Serialize)]
struct Details {
    mrtd: Digest384,
    page_order: &'static str,
    /// Null where it cannot be known.
    rtmr: [Option<Digest384>; 4],
    events: Events,
}

/// What the firmware extends into RTMR0; null where unknown.
#[derive(Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Events {
    td_hob: Option<Digest384>,
    cfv: Option<Digest384>,
}

#[derive(Serialize)]
struct Assumptions {
    firmware: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    firmware_notes: Vec<&'static str>,
    igvm: Option<String>,
    compatibility_mask: Option<String>,
    memory: Option<u64>,
    kernel: Option<String>,
    initrd: Option<String>,
    append: Option<String>,
    host_rules: Vec<&'static str>,
}

/// Where the firmware's pages can be without a word about the guest's memory: MRTD does not depend
/// on it.
const ANY_MEMORY: u64 = 2 << 30;

const PER_PAGE_RULE: &str =
    "the host adds and measures page by page, as upstream Linux 6.16 and later do";
const TWO_PASS_RULE: &str =
    "the host adds all pages of a section and then measures them, as Canonical's QEMU 8.2.2 does";
const HOB_RULE: &str = "the memory is that of QEMU's q35 machine: all below 4 GiB if it is less than \
     2.75 GiB, otherwise 2 GiB there and the rest from 4 GiB";
const KERNEL_RULE: &str = "QEMU's q35 machine patches the kernel's setup header, and OVMF is older than \
     edk2-stable202505";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let measured = measured(args)?;
    args.output.print(match &args.append {
        Some(line) => measured.with_line(line, false),
        None => measured,
    })
}

pub(super) fn measured(args: &Args) -> anyhow::Result<Measured> {
    if let Some(igvm) = &args.igvm {
        args.own.is_for(false)?;
        return measured_igvm(args, igvm);
    }
    let Some(path) = &args.firmware else {
        return measured_ours(args, args.own.image());
    };
    let image = read("firmware", path, MAX_FIRMWARE)?;
    if firmware::is_ours(&image) {
        measured_ours(args, &image)
    } else {
        args.own.is_for(false)?;
        measured_tdvf(args, path, &image)
    }
}

impl Args {
    /// The guest of a configuration.
    pub(super) fn of(config: &GuestConfig) -> Self {
        Self {
            firmware: config.firmware.clone(),
            igvm: config.igvm.clone(),
            compatibility_mask: None,
            page_order: Order::PerPage,
            memory: Some(config.memory),
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
            append: Some(config.cmdline.clone()),
            vcpus: config.vcpus,
            own: OwnFirmware::of(config),
            output: Output::default(),
        }
    }
}

/// A guest that our own firmware starts: it measures the payloads itself.
fn measured_ours(args: &Args, image: &[u8]) -> anyhow::Result<Measured> {
    let failed = "the guest of Casemate's firmware cannot be measured";
    let kernel = args.kernel.as_deref().context(
        "Casemate's firmware starts a kernel and nothing else: add --kernel, or --firmware for \
         another firmware",
    )?;
    let initrd = read_optional("initial RAM disk", args.initrd.as_deref(), MAX_PAYLOAD)?;
    let payloads = Payloads {
        kernel: read("kernel", kernel, MAX_PAYLOAD)?.into(),
        initrd: initrd.unwrap_or_default().into(),
        cmdline: args.append.as_deref().unwrap_or_default().as_bytes().into(),
        memory: args.memory.map_or(ANY_MEMORY, |memory| memory.0),
        vcpus: args.vcpus,
    };
    let policy = TdxPolicy::new(ATTRIBUTE_SEPT_VE_DISABLE);
    let plan = firmware::tdx_guest(image, args.own.flags(), &payloads, policy).context(failed)?;
    let order = args.page_order.into();
    let mrtd = tdx::mrtd(&plan, order).context(failed)?;
    let [rtmr0, rtmr1, rtmr2] = firmware::rtmrs(&payloads).context(failed)?;
    let rtmr = [args.memory.map(|_| rtmr0), Some(rtmr1), Some(rtmr2), None];
    let report = report(args, mrtd, rtmr, Events::default(), vec![order_rule(args)]);
    report.measured(rows(&report), move || Ok(tdx::manifest(&plan, order)?))
}

fn measured_tdvf(args: &Args, path: &Path, image: &[u8]) -> anyhow::Result<Measured> {
    let failed = || format!("{} cannot be measured", path.display());
    let tdvf = Tdvf::parse(image).with_context(failed)?;
    ensure!(
        args.memory.is_some() || args.kernel.is_none(),
        "OVMF's measurement of a kernel depends on the memory; add --memory, such as --memory 4G"
    );
    let measured_hob =
        tdvf.sections.iter().any(|section| section.kind == SectionKind::TdHob && section.measured);
    ensure!(
        args.memory.is_some() || !measured_hob,
        "{} has its TD HOB measured, which depends on the memory; add --memory, such as --memory 4G",
        path.display()
    );
    let plan = firmware_plan(image, args.memory.map(|memory| memory.0)).with_context(failed)?;
    let order = args.page_order.into();
    let mrtd = tdx::mrtd(&plan, order).with_context(failed)?;
    let memory = args.memory.map(|memory| hob::q35_memory(memory.0)).transpose()?;
    let td_hob =
        memory.map(|memory| tdvf::td_hob(&tdvf, &memory)).transpose().with_context(failed)?;
    let events =
        Events { td_hob: td_hob.map(|hob| hob.event_digest()), cfv: tdvf.cfv_event_digest() };
    let [rtmr1, rtmr2] = direct_boot(args)?;
    let mut host_rules = vec![order_rule(args)];
    host_rules.extend(args.memory.is_some().then_some(HOB_RULE));
    host_rules.extend(args.kernel.is_some().then_some(KERNEL_RULE));
    let rtmr = [None, rtmr1, rtmr2, None];
    let report = report(args, mrtd, rtmr, events, host_rules);
    report.measured(rows(&report), move || Ok(tdx::manifest(&plan, order)?))
}

/// The plan of a firmware in QEMU's q35 machine.
pub(crate) fn firmware_plan(image: &[u8], memory: Option<u64>) -> anyhow::Result<LaunchPlan> {
    let policy = TdxPolicy::new(ATTRIBUTE_SEPT_VE_DISABLE);
    let memory = hob::q35_memory(memory.unwrap_or(ANY_MEMORY))?;
    Ok(tdvf::plan(image, &memory, 1, policy)?)
}

/// RTMR1 and RTMR2, if there is a kernel.
fn direct_boot(args: &Args) -> anyhow::Result<[Option<Digest384>; 2]> {
    let (Some(path), Some(ByteSize(memory))) = (&args.kernel, args.memory) else {
        return Ok([None; 2]);
    };
    let kernel = read("kernel", path, MAX_PAYLOAD)?;
    let initrd = match &args.initrd {
        Some(path) => Some(Initrd::of(&read("initial RAM disk", path, MAX_PAYLOAD)?)),
        None => None,
    };
    let command_line = args.append.as_deref().unwrap_or_default();
    let boot = DirectBoot { kernel: &kernel, initrd, command_line, memory };
    let rtmr1 = boot.rtmr1().with_context(|| format!("{} cannot be measured", path.display()))?;
    Ok([Some(rtmr1), Some(boot.rtmr2())])
}

fn measured_igvm(args: &Args, path: &Path) -> anyhow::Result<Measured> {
    ensure!(
        args.page_order == Order::PerPage,
        "an IGVM file has single pages and no sections, so that there is no two-pass order for it"
    );
    let failed = || format!("{} cannot be measured", path.display());
    let mut file = igvm::open(path)?;
    let mrtd = measure_tdx(&mut file, args.compatibility_mask).with_context(failed)?;
    let rules = vec![order_rule(args)];
    let report = report(args, mrtd, [None; 4], Events::default(), rules);
    let mask = args.compatibility_mask;
    report.measured(rows(&report), move || igvm_manifest(&mut file, mask))
}

fn igvm_manifest(file: &mut IgvmFile<igvm::Source>, mask: Option<u32>) -> anyhow::Result<Manifest> {
    let platform = file.platform(PlatformKind::Tdx, mask)?;
    Ok(manifest(file, platform, ZeroPages::Normal)?)
}

const fn order_rule(args: &Args) -> &'static str {
    match args.page_order {
        Order::PerPage => PER_PAGE_RULE,
        Order::TwoPass => TWO_PASS_RULE,
    }
}

fn report(
    args: &Args,
    mrtd: Digest384,
    rtmr: [Option<Digest384>; 4],
    events: Events,
    host_rules: Vec<&'static str>,
) -> Report<Details, Assumptions> {
    let name = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let page_order = PageOrder::from(args.page_order).as_str();
    Report {
        platform: PlatformKind::Tdx,
        measurement: mrtd,
        details: Details { mrtd, page_order, rtmr, events },
        assumptions: Assumptions {
            firmware: name(&args.firmware),
            firmware_notes: args.own.notes(),
            igvm: name(&args.igvm),
            compatibility_mask: args.compatibility_mask.map(|mask| format!("{mask:#x}")),
            memory: args.memory.map(|memory| memory.0),
            kernel: name(&args.kernel),
            initrd: name(&args.initrd),
            append: args.append.clone(),
            host_rules,
        },
    }
}

fn rows(report: &Report<Details, Assumptions>) -> Vec<Row> {
    let (details, assumptions) = (&report.details, &report.assumptions);
    let mut rows = vec![
        ("platform", "TDX (the measurement is MRTD)".to_owned()),
        ("page order", details.page_order.to_owned()),
    ];
    let digest = |value: &Option<Digest384>| value.map(|value| value.to_string());
    let optional = [
        ("RTMR0", digest(&details.rtmr[0])),
        ("RTMR1", digest(&details.rtmr[1])),
        ("RTMR2", digest(&details.rtmr[2])),
        ("TD HOB event", digest(&details.events.td_hob)),
        ("CFV event", digest(&details.events.cfv)),
        ("firmware", assumptions.firmware.clone()),
        ("IGVM file", assumptions.igvm.clone()),
        ("memory", assumptions.memory.map(|bytes| format!("{bytes} bytes"))),
        ("kernel", assumptions.kernel.clone()),
        ("initrd", assumptions.initrd.clone()),
        ("command line", assumptions.append.clone()),
    ];
    rows.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    rows.extend(assumptions.firmware_notes.iter().map(|note| ("firmware", (*note).to_owned())));
    rows.extend(assumptions.host_rules.iter().map(|rule| ("assuming that", (*rule).to_owned())));
    rows
}
