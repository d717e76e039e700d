//! The measurement of a TDX guest, and what it assumes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use casemate_config::{ByteSize, GuestConfig};
use casemate_launch::linux::qemu_kernel;
use casemate_launch::manifest::Manifest;
use casemate_launch::tdvf::SectionKind;
use casemate_launch::tdx::rtmr::{self, DirectBoot};
use casemate_launch::tdx::{self, PageOrder, events};
use casemate_launch::{Digest384, LaunchPlan, PageKind, PlatformKind};
use casemate_plan::{Boot, BootFiles, GuestPlan, Rules, plan};
use serde::Serialize;

use super::output::{Measured, Report, Row};
use crate::commands::firmware_notes;

/// A guest, and the rules of its launcher.
pub(super) struct TdxGuest {
    pub(super) config: GuestConfig,
    pub(super) rules: Rules,
    pub(super) order: PageOrder,
    /// `None` if the configuration's is arbitrary.
    pub(super) memory: Option<ByteSize>,
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
    /// Null for an IGVM file.
    vmm: Option<&'static str>,
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

const PER_PAGE_RULE: &str =
    "the host adds and measures page by page, as upstream Linux 6.16 and later do";
const TWO_PASS_RULE: &str =
    "the host adds all pages of a section and then measures them, as Canonical's QEMU 8.2.2 does";
const HOB_RULE: &str = "the memory is that of QEMU's q35 machine: all below 4 GiB if it is less than \
     2.75 GiB, otherwise 2 GiB there and the rest from 4 GiB";
const OVMF_RULE: &str = "OVMF is older than edk2-stable202505";
const PATCHED_RULE: &str =
    "the launcher patches the kernel's setup header, as QEMU's q35 machine does before 10.2";
const UNPATCHED_RULE: &str =
    "the launcher leaves the kernel as it is, as casemate run and QEMU from 10.2 on do";

impl TdxGuest {
    /// The guest that `casemate run` launches.
    pub(super) fn of(config: GuestConfig) -> Self {
        let memory = Some(config.memory);
        Self { config, rules: Rules::default(), order: PageOrder::PerPage, memory }
    }

    pub(super) fn measured(&self) -> anyhow::Result<Measured> {
        let plan = plan(&self.config, PlatformKind::Tdx, &self.rules)?;
        let launch = &plan.launch;
        ensure!(
            self.memory.is_some() || !measures_td_hob(launch),
            "the TD HOB is measured, and depends on the memory; add --memory, such as --memory 4G"
        );
        let mrtd = tdx::mrtd(launch, self.order)?;
        let (rtmr, events) = match &plan.boot {
            Boot::Window(payloads) => {
                let [rtmr0, rtmr1, rtmr2] = rtmr::own_firmware(payloads)?;
                ([Some(rtmr0), Some(rtmr1), Some(rtmr2), None], Events::default())
            }
            Boot::FirmwareConfig(files) => {
                let [rtmr1, rtmr2] = self.direct_boot(&plan, files.as_ref())?;
                let td_hob = self.memory.and_then(|_| events::td_hob(launch));
                ([None, rtmr1, rtmr2, None], Events { td_hob, cfv: events::cfv(launch) })
            }
            Boot::Direct | Boot::Igvm => ([None; 4], Events::default()),
        };
        let report = Report {
            platform: PlatformKind::Tdx,
            measurement: mrtd,
            details: Details { mrtd, page_order: self.order.as_str(), rtmr, events },
            assumptions: self.assumptions(&plan),
        };
        let order = self.order;
        report.measured(rows(&report), move || Ok(tdx::manifest(&plan.launch, order)?))
    }

    /// RTMR1 and RTMR2, if there is a kernel.
    fn direct_boot(
        &self,
        plan: &GuestPlan,
        files: Option<&BootFiles>,
    ) -> anyhow::Result<[Option<Digest384>; 2]> {
        let Some(files) = files else { return Ok([None; 2]) };
        let file = self.config.kernel.as_deref().unwrap_or(Path::new(""));
        let failed = || format!("{} cannot be measured", file.display());
        let initrd = (!files.initrd.is_empty()).then_some(&*files.initrd);
        let patched = plan.launcher.patches_kernel();
        ensure!(
            self.memory.is_some() || !patched || initrd.is_none(),
            "the address of the initrd in the patched kernel depends on the memory; add --memory, \
             such as --memory 4G"
        );
        let kernel = if patched {
            let length = initrd.map(|initrd| initrd.len() as u64);
            qemu_kernel::patch(&files.kernel, length, self.config.memory.0)
                .with_context(failed)?
                .into()
        } else {
            files.kernel.clone()
        };
        let boot = DirectBoot {
            kernel: &kernel,
            initrd: initrd.map(Digest384::of),
            command_line: &files.cmdline,
        };
        Ok([Some(boot.rtmr1().with_context(failed)?), Some(boot.rtmr2())])
    }

    fn assumptions(&self, plan: &GuestPlan) -> Assumptions {
        let config = &self.config;
        let name = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let mut host_rules = vec![order_rule(self.order)];
        if let Boot::FirmwareConfig(files) = &plan.boot {
            host_rules.extend(self.memory.is_some().then_some(HOB_RULE));
            if files.is_some() {
                let patched = plan.launcher.patches_kernel();
                host_rules.push(if patched { PATCHED_RULE } else { UNPATCHED_RULE });
                host_rules.push(OVMF_RULE);
            }
        }
        Assumptions {
            vmm: Some(plan.launcher.rules()),
            firmware: name(&config.firmware),
            firmware_notes: firmware_notes(config),
            igvm: name(&config.igvm),
            compatibility_mask: None,
            memory: match &plan.boot {
                Boot::Window(payloads) => Some(payloads.memory),
                _ => self.memory.map(|memory| memory.0),
            },
            kernel: name(&config.kernel),
            initrd: name(&config.initrd),
            append: config.kernel.is_some().then(|| config.cmdline.clone()),
            host_rules,
        }
    }
}

/// The report of an IGVM file.
pub(super) fn igvm_report(
    path: &Path,
    compatibility_mask: Option<u32>,
    mrtd: Digest384,
    manifest: impl FnOnce() -> anyhow::Result<Manifest> + 'static,
) -> anyhow::Result<Measured> {
    let order = PageOrder::PerPage;
    let events = Events::default();
    let report = Report {
        platform: PlatformKind::Tdx,
        measurement: mrtd,
        details: Details { mrtd, page_order: order.as_str(), rtmr: [None; 4], events },
        assumptions: Assumptions {
            vmm: None,
            firmware: None,
            firmware_notes: Vec::new(),
            igvm: Some(path.display().to_string()),
            compatibility_mask: compatibility_mask.map(|mask| format!("{mask:#x}")),
            memory: None,
            kernel: None,
            initrd: None,
            append: None,
            host_rules: vec![order_rule(order)],
        },
    };
    report.measured(rows(&report), manifest)
}

fn measures_td_hob(plan: &LaunchPlan) -> bool {
    let tag = SectionKind::TdHob.tag();
    plan.imports.iter().any(|import| import.tag == tag && import.kind == PageKind::Normal)
}

const fn order_rule(order: PageOrder) -> &'static str {
    match order {
        PageOrder::PerPage => PER_PAGE_RULE,
        PageOrder::TwoPass => TWO_PASS_RULE,
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
        ("rules of", assumptions.vmm.map(str::to_owned)),
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
