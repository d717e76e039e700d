//! What is measured of a guest, who holds its keys, and what its policy allows.

use std::borrow::Cow;
use std::fmt;

use casemate_config::GuestConfig;
use casemate_launch::PlatformKind;
use casemate_protocol::{BROKER_KEY_PARAMETER, pinned_keys};
use serde::Serialize;

use super::host::Host;
use crate::commands::cautions::measured_line;

/// What the guest starts with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Boot {
    Casemate,
    /// SEV-SNP: whether it has a place for the hashes of a kernel.
    Ovmf {
        kernel_hashes: bool,
    },
    Igvm,
}

/// The guest on one platform.
#[derive(Serialize)]
pub(super) struct Facts {
    platform: PlatformKind,
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
}

impl Facts {
    pub(super) fn new(platform: PlatformKind, boot: Boot, config: &GuestConfig) -> Self {
        Self {
            platform,
            measured: measured(platform, boot, config),
            not_measured: not_measured(platform, boot, config),
            host_can: Host::new(platform, boot, config),
            keys: keys(platform, config),
            stays_visible: vec![
                "the configuration, the command line, and the files of kernel, initrd and firmware",
                "the VMM's log, timeline and metrics: exits, memory conversions, device requests",
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

fn measured(platform: PlatformKind, boot: Boot, config: &GuestConfig) -> Vec<Fact> {
    let mut list = Vec::new();
    match (platform, boot) {
        (PlatformKind::Plain, _) => return list,
        (_, Boot::Igvm) => {
            list.push(fact(
                "the IGVM file's measured pages",
                "each page and its address, in file order",
            ));
        }
        (_, Boot::Casemate | Boot::Ovmf { .. }) => {
            list.push(fact("the firmware", "each page of the image and its address"));
        }
    }
    if config.firmware_log {
        list.push(fact(
            "that the firmware is the one for development",
            "another image, which writes what it does to the serial port, and a flag that says so",
        ));
    }
    let kernel = config.kernel.is_some();
    match (platform, boot) {
        (_, Boot::Casemate) if kernel => list.push(fact(
            "kernel, initrd and command line",
            "their SHA-256 are in a measured page of the firmware, which refuses any other",
        )),
        (PlatformKind::Snp, Boot::Ovmf { kernel_hashes: true }) if kernel => list.push(fact(
            "kernel, initrd and command line",
            "their SHA-256 are in a measured page, which OVMF checks them against",
        )),
        (PlatformKind::Tdx, Boot::Ovmf { .. }) if kernel => list.push(fact(
            "kernel, initrd and command line",
            "the firmware extends them into RTMR1 and RTMR2; a policy has to name these as well",
        )),
        _ => {}
    }
    if platform == PlatformKind::Snp {
        list.push(fact("every vCPU's registers", "its VMSA; so the number of vCPUs, too"));
        list.push(fact("the guest policy", "not in the measurement, but signed in every report"));
    } else {
        let [attributes, xfam] = config.tdx.clone().unwrap_or_default().bit_names();
        let signed = |names: Vec<&str>| {
            format!("{}: not in MRTD, but signed in every quote", names.join(", "))
        };
        list.push(fact("the TD's attributes", signed(attributes)));
        list.push(fact("the TD's extended features (XFAM)", signed(xfam)));
    }
    list
}

fn not_measured(platform: PlatformKind, boot: Boot, config: &GuestConfig) -> Vec<&'static str> {
    if platform == PlatformKind::Plain {
        return vec!["anything: a plain guest has no measurement"];
    }
    let mut list = vec!["the amount of memory", "which devices there are, and what they answer"];
    if !config.disk.is_empty() {
        list.push("the contents of disks: let the guest encrypt and authenticate them, or verify a root hash that the measured command line names");
    }
    let unchecked = (platform, boot) == (PlatformKind::Snp, Boot::Ovmf { kernel_hashes: false });
    if unchecked && config.kernel.is_some() {
        list.push(
            "the kernel: this firmware has no place for its hashes, and such a guest is refused",
        );
    }
    match (platform, boot) {
        (PlatformKind::Tdx, Boot::Ovmf { .. }) => {
            list.push("ACPI tables: they are in RTMR0, of which a policy can know a part only");
        }
        (_, Boot::Ovmf { .. }) => list.push("ACPI tables, which the host makes for OVMF"),
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
    let action = |action, possible, why| Support { action, possible, why };
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
        action(
            "snapshot and restore",
            plain,
            if plain {
                "the host can copy memory; Casemate has no command for it"
            } else {
                "private memory cannot be copied out, and there is no command that exports it"
            },
        ),
        action(
            "live migration",
            plain,
            match platform {
                PlatformKind::Plain => "the host can copy memory; Casemate has no command for it",
                PlatformKind::Snp => "the policy names no migration agent",
                PlatformKind::Tdx => "the attributes do not say MIGRATABLE",
            },
        ),
        action("add vCPUs or memory to a running guest", false, "their number is fixed at launch"),
        action("stop the guest, or start it anew", true, "the host owns the machine's time"),
    ]
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "On {}", self.platform.name())?;
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
            .map(|Support { action, possible, why }| {
                format!("{action}: {}, {why}", if *possible { "possible" } else { "impossible" })
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
