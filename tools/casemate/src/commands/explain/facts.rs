//! What is measured of a guest, who holds its keys, and what its policy allows.

use std::borrow::Cow;
use std::fmt;

use casemate_config::GuestConfig;
use casemate_launch::{LaunchPlan, PageKind, PlatformKind, Policy};
use casemate_plan::{Boot, GuestPlan};
use casemate_protocol::{BROKER_KEY_PARAMETER, pinned_keys};
use serde::Serialize;

use super::host::Host;
use crate::commands::cautions::measured_line;

/// The guest on one platform.
#[derive(Serialize)]
pub(super) struct Facts {
    platform: PlatformKind,
    /// The reason why the guest cannot be launched there; null if it can.
    refused: Option<String>,
    measured: Vec<Fact>,
    not_measured: Vec<&'static str>,
    host_can: Host,
    keys: Vec<Fact>,
    stays_visible: Vec<&'static str>,
    support: Vec<Support>,
}

/// A thing, and what is to be said about it.
#[derive(Serialize)]
struct Fact {
    what: &'static str,
    how: Cow<'static, str>,
}

/// Something that the people who run the guest may want to do.
#[derive(Serialize)]
struct Support {
    action: &'static str,
    possible: bool,
    why: &'static str,
    /// Another way to the same end, where this one is impossible.
    #[serde(skip_serializing_if = "Option::is_none")]
    instead: Option<&'static str>,
}

/// Instead of a snapshot of a confidential guest.
const INSTEAD_OF_SNAPSHOT: &str = "stop the guest (SIGTERM presses its power button), take a snapshot of \
                                   its disks, and start it again";
/// Instead of the migration of a confidential guest.
const INSTEAD_OF_MIGRATION: &str = "stop the guest, and launch it on the other host from the same files and \
                                    disks: `casemate measure` predicts the digest that it has there; it \
                                    attests anew, and its broker releases its secrets again";

impl Facts {
    pub(super) fn new(
        platform: PlatformKind,
        plan: anyhow::Result<GuestPlan>,
        config: &GuestConfig,
    ) -> Self {
        let (plan, refused) = match plan {
            Ok(plan) => (Some(plan), None),
            Err(reason) => (None, Some(format!("{reason:#}"))),
        };
        let boot = plan.as_ref().map(|plan| &plan.boot);
        Self {
            platform,
            refused,
            measured: plan.as_ref().map(|plan| measured(plan, config)).unwrap_or_default(),
            not_measured: not_measured(platform, boot, config),
            host_can: Host::new(platform, boot, config),
            keys: keys(platform, config),
            stays_visible: vec![
                "the configuration, the command line, and the files of kernel, initrd and firmware",
                "the VMM's log and events",
                "everything that the guest prints on its serial port or console",
                "when the guest runs, and how much memory, disk and network it uses",
            ],
            support: support(platform, config),
        }
    }
}

fn fact(what: &'static str, how: impl Into<Cow<'static, str>>) -> Fact {
    Fact { what, how: how.into() }
}

fn measured(plan: &GuestPlan, config: &GuestConfig) -> Vec<Fact> {
    let mut list = pages(&plan.launch);
    if config.firmware_log {
        list.push(fact(
            "that the firmware is the one for development",
            "another image, which writes what it does to the serial port, and a flag that says so",
        ));
    }
    list.extend(kernel(plan));
    match &plan.launch.policy {
        Policy::Plain => return Vec::new(),
        Policy::Snp(policy) => {
            let (vcpus, guest_policy) = (plan.launch.vcpus.len(), policy.guest_policy);
            list.push(fact("every vCPU's registers", format!("its VMSA; {vcpus} of them")));
            let signed = "not in the measurement, but signed in every report";
            list.push(fact("the guest policy", format!("{guest_policy:#x}: {signed}")));
        }
        Policy::Tdx(_) => {
            let (attributes, xfam) = config.tdx.clone().unwrap_or_default().bit_names();
            let xfam = xfam.unwrap_or_else(|| vec!["all that the host offers"]);
            let signed = |names: Vec<&str>| {
                format!("{}: not in MRTD, but signed in every quote", names.join(", "))
            };
            list.push(fact("the TD's attributes", signed(attributes)));
            list.push(fact("the TD's extended features (XFAM)", signed(xfam)));
        }
    }
    list
}

/// The imports that a platform measures, those of one tag together.
fn pages(plan: &LaunchPlan) -> Vec<Fact> {
    let mut list: Vec<(&'static str, PageKind, u64)> = Vec::new();
    for import in plan.imports.iter().filter(|import| import.kind != PageKind::Shared) {
        let pages = import.range.pages().0;
        match list.iter_mut().find(|(tag, kind, _)| (*tag, *kind) == (import.tag, import.kind)) {
            Some((_, _, sum)) => *sum += pages,
            None => list.push((import.tag, import.kind, pages)),
        }
    }
    list.into_iter()
        .map(|(tag, kind, pages)| {
            let what = if kind == PageKind::Normal { "contents and address" } else { "address" };
            let each =
                if pages == 1 { "1 page, its" } else { &format!("{pages} pages, each page's") };
            fact(tag, format!("{each} {what}"))
        })
        .collect()
}

/// The way in which the kernel is covered, if there is one outside of an IGVM file.
fn kernel(plan: &GuestPlan) -> Option<Fact> {
    const KERNEL: &str = "kernel, initrd and command line";
    let how = match (&plan.boot, plan.launch.platform()) {
        (Boot::Window(_), _) => {
            "their SHA-256 are in a measured page of the firmware, which refuses any other"
        }
        (Boot::FirmwareConfig(Some(_)), PlatformKind::Snp) => {
            "their SHA-256 are in a measured page, which OVMF checks them against"
        }
        (Boot::FirmwareConfig(Some(_)), PlatformKind::Tdx) => {
            "the firmware extends them into RTMR1 and RTMR2; a policy has to name these as well"
        }
        _ => return None,
    };
    Some(fact(KERNEL, how))
}

fn not_measured(
    platform: PlatformKind,
    boot: Option<&Boot>,
    config: &GuestConfig,
) -> Vec<&'static str> {
    if platform == PlatformKind::Plain {
        return vec!["anything: a plain guest has no measurement"];
    }
    let mut list = vec!["the amount of memory", "which devices there are, and what they answer"];
    if !config.disk.is_empty() {
        list.push("the contents of disks: let the guest encrypt and authenticate them, or verify a root hash that the measured command line names");
    }
    match (platform, boot) {
        (PlatformKind::Tdx, Some(Boot::FirmwareConfig(_))) => {
            list.push("ACPI tables: they are in RTMR0, of which a policy can know a part only");
        }
        (_, Some(Boot::FirmwareConfig(_))) => {
            list.push("ACPI tables, which the host makes for OVMF");
        }
        _ => {}
    }
    if platform == PlatformKind::Snp {
        list.push("CPUID values: the secure processor checks them instead");
    }
    list
}

fn keys(platform: PlatformKind, config: &GuestConfig) -> Vec<Fact> {
    let mut list = match platform {
        PlatformKind::Plain => {
            return vec![fact("any", "the host, which can read them in the guest's memory")];
        }
        PlatformKind::Snp => vec![
            fact(
                "memory encryption key",
                "the AMD secure processor, for as long as the guest runs",
            ),
            fact("VCEK or VLEK, which signs reports", "the chip; AMD vouches for it"),
        ],
        PlatformKind::Tdx => vec![
            fact("memory encryption key", "the memory controller, set up by the TDX module"),
            fact(
                "attestation key, which signs quotes",
                "the quoting enclave on the host; Intel vouches for its platform",
            ),
        ],
    };
    if config.snp.as_ref().is_some_and(|snp| snp.id_block.is_some())
        && platform == PlatformKind::Snp
    {
        list.push(fact(
            "ID key, which signed the ID block",
            "whoever made it; not needed on the host",
        ));
    }
    list.push(fact(
        "disk keys and other secrets",
        "their owner, until a broker gives them to a guest whose evidence it accepts",
    ));
    list.extend(measured_line(config).map(|line| fact("broker key", broker_key(line))));
    list
}

/// The brokers from which the guest's agent takes secrets.
fn broker_key(command_line: &str) -> String {
    match pinned_keys(command_line) {
        Ok(keys) if keys.is_empty() => format!(
            "the command line pins none ({BROKER_KEY_PARAMETER}=KEY): the host can choose the secrets of a \
             guest whose agent takes any broker"
        ),
        Ok(keys) => {
            let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
            format!("{}: pinned by the command line; who has its other half", keys.join(", "))
                + " chooses the guest's secrets"
        }
        Err(error) => format!("{BROKER_KEY_PARAMETER} on the command line is {error}"),
    }
}

fn support(platform: PlatformKind, config: &GuestConfig) -> Vec<Support> {
    let debug = match platform {
        PlatformKind::Plain => true,
        PlatformKind::Snp => config.snp.as_ref().is_some_and(|snp| snp.debug),
        PlatformKind::Tdx => config.tdx.as_ref().is_some_and(|tdx| tdx.debug),
    };
    let plain = platform == PlatformKind::Plain;
    let action = |action, possible, why| Support { action, possible, why, instead: None };
    let otherwise = |support, instead| Support { instead: (!plain).then_some(instead), ..support };
    vec![
        action(
            "read or write the guest's memory, attach a debugger",
            debug,
            match (plain, debug) {
                (true, _) => "nothing is encrypted",
                (_, true) => {
                    "the policy allows it, and evidence says so: nobody should trust this guest"
                }
                _ => "the policy forbids it, and the platform enforces that",
            },
        ),
        otherwise(
            action(
                "snapshot and restore",
                plain,
                if plain {
                    "the host can copy memory; Casemate has no command for it"
                } else {
                    "private memory cannot be copied out, and there is no command that exports it"
                },
            ),
            INSTEAD_OF_SNAPSHOT,
        ),
        otherwise(
            action(
                "live migration",
                plain,
                match platform {
                    PlatformKind::Plain => {
                        "the host can copy memory; Casemate has no command for it"
                    }
                    PlatformKind::Snp => "the policy names no migration agent",
                    PlatformKind::Tdx => "the attributes do not say MIGRATABLE",
                },
            ),
            INSTEAD_OF_MIGRATION,
        ),
        action("add vCPUs or memory to a running guest", false, "their number is fixed at launch"),
        action("stop the guest, or start it anew", true, "the host owns the machine's time"),
    ]
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "On {}", self.platform.name())?;
        if let Some(reason) = &self.refused {
            writeln!(f, "\n  This guest cannot be launched: {reason}")?;
        }
        let facts = |list: &[Fact]| -> Vec<String> {
            list.iter().map(|fact| format!("{}: {}", fact.what, fact.how)).collect()
        };
        let texts =
            |list: &[&str]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        section(f, "Measured", &facts(&self.measured))?;
        section(f, "Not measured", &texts(&self.not_measured))?;
        section(f, "The host can see", &texts(&self.host_can.see))?;
        section(f, "The host can change", &texts(&self.host_can.change))?;
        section(f, "The host can delay", &texts(&self.host_can.delay))?;
        section(f, "The host can withhold", &texts(&self.host_can.withhold))?;
        section(f, "Who holds which key", &facts(&self.keys))?;
        section(f, "Logs and metadata that stay visible", &texts(&self.stays_visible))?;
        let support: Vec<_> = self
            .support
            .iter()
            .map(|Support { action, possible, why, instead }| {
                let verdict = if *possible { "possible" } else { "impossible" };
                let instead = instead.map(|other| format!("; instead, {other}"));
                format!("{action}: {verdict}, {why}{}", instead.unwrap_or_default())
            })
            .collect();
        section(f, "Support actions", &support)
    }
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, lines: &[String]) -> fmt::Result {
    writeln!(f, "\n  {title}")?;
    if lines.is_empty() {
        writeln!(f, "    nothing")?;
    }
    lines.iter().try_for_each(|line| writeln!(f, "    {line}"))
}
