//! `casemate measure snp --igvm`

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use casemate_launch::igvm::ZeroPages;
use casemate_launch::measure::igvm::{SnpMeasurement, manifest, measure_snp};
use casemate_launch::rules::Profile;
use casemate_launch::{Digest384, PlatformKind};
use clap::ValueEnum;
use serde::Serialize;

use super::output::{Measured, Report, Row};
use crate::commands::{igvm, number};

/// Options of an IGVM file.
#[derive(Default, clap::Args)]
pub(super) struct IgvmArgs {
    /// IGVM file to measure instead of firmware, with the registers that it contains
    #[arg(long, value_name = "FILE", conflicts_with_all = ["firmware", "vcpus", "kernel"])]
    pub(super) igvm: Option<PathBuf>,
    /// Compatibility mask, if the IGVM file supports SEV-SNP more than once
    #[arg(long, value_name = "MASK", requires = "igvm", value_parser = number::<u32>)]
    compatibility_mask: Option<u32>,
    /// Type of measured pages without data [default: as the launcher of --vmm]
    ///
    /// QEMU imports NORMAL pages of zeroes, Cloud Hypervisor since April 2026 ZERO pages ("native").
    #[arg(long, value_enum, requires = "igvm")]
    zero_pages: Option<Zeroes>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Zeroes {
    #[default]
    Normal,
    Native,
}

#[derive(Serialize)]
struct Details {
    /// An IGVM file has no firmware of its own pages.
    firmware_seed: Option<Digest384>,
    digests: Digests,
}

/// The digests of a file, by who computes them.
#[derive(Serialize)]
pub(crate) struct Digests {
    /// What the file says, in its own order.
    file: Digest384,
    /// What KVM makes of it; null if it cannot launch it as written.
    kvm: Option<Digest384>,
    /// Why it cannot.
    kvm_refuses: Option<String>,
    /// The digest that the file's ID block is for.
    id_block: Option<Digest384>,
}

#[derive(Serialize)]
struct Assumptions {
    igvm: String,
    compatibility_mask: String,
    zero_pages: &'static str,
    host_rules: Vec<&'static str>,
}

const ORDER_RULE: &str = "pages enter as 4 KiB pages in the order of the file";
const KVM_RULE: &str = "KVM measures the VMSA last, at 0xfffffffff000, wherever it is in the file";

impl From<&SnpMeasurement> for Digests {
    fn from(found: &SnpMeasurement) -> Self {
        Self {
            file: found.file,
            kvm: found.kvm.clone().ok(),
            kvm_refuses: found.kvm.as_ref().err().map(ToString::to_string),
            id_block: found.id_block,
        }
    }
}

impl Digests {
    /// Whether KVM cannot launch the file.
    pub(crate) const fn are_refused(&self) -> bool {
        self.kvm_refuses.is_some()
    }

    /// The lines of the table.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        match (self.kvm, &self.kvm_refuses) {
            (Some(kvm), _) => rows.push(("digest by KVM", kvm.to_string())),
            (None, Some(why)) => rows.push((
                "digest by KVM",
                format!("none, KVM cannot launch the file as it is written: {why}"),
            )),
            (None, None) => {}
        }
        let same = if self.kvm == Some(self.file) { " (the same)" } else { "" };
        rows.push(("digest of the file", format!("{}{same}", self.file)));
        if let Some(expected) = self.id_block {
            let verdict = if Some(expected) == self.kvm {
                ""
            } else {
                " (not what KVM computes: the launch would fail)"
            };
            rows.push(("ID block is for", format!("{expected}{verdict}")));
        }
        rows
    }
}

pub(super) fn measured(
    args: &IgvmArgs,
    path: &Path,
    launcher: Profile,
) -> anyhow::Result<Measured> {
    let of_launcher = match launcher {
        Profile::CloudHypervisor => Zeroes::Native,
        _ => Zeroes::Normal,
    };
    let zeroes = args.zero_pages.unwrap_or(of_launcher);
    let zero_pages = match zeroes {
        Zeroes::Normal => ZeroPages::Normal,
        Zeroes::Native => ZeroPages::Native,
    };
    let failed = || format!("{} cannot be measured", path.display());
    let mut file = igvm::open(path)?;
    let platform =
        file.platform(PlatformKind::Snp, args.compatibility_mask).with_context(failed)?;
    let found = measure_snp(&mut file, Some(platform.mask), zero_pages).with_context(failed)?;
    let report = Report {
        platform: PlatformKind::Snp,
        measurement: found.launch_digest(),
        details: Details { firmware_seed: None, digests: Digests::from(&found) },
        assumptions: Assumptions {
            igvm: path.display().to_string(),
            compatibility_mask: format!("{:#x}", platform.mask),
            zero_pages: match zeroes {
                Zeroes::Normal => "normal",
                Zeroes::Native => "native",
            },
            host_rules: vec![ORDER_RULE, KVM_RULE],
        },
    };
    let mut rows = vec![("platform", "SEV-SNP".to_owned())];
    rows.extend(report.details.digests.rows());
    rows.push(("IGVM file", report.assumptions.igvm.clone()));
    rows.push(("mask", report.assumptions.compatibility_mask.clone()));
    rows.push(("zero pages", report.assumptions.zero_pages.to_owned()));
    rows.extend([ORDER_RULE, KVM_RULE].map(|rule| ("assuming that", rule.to_owned())));
    let measured = report.measured(rows, move || Ok(manifest(&mut file, platform, zero_pages)?))?;
    Ok(match found.kvm {
        Ok(_) => measured,
        Err(why) => measured.refused(format!("{}: KVM cannot launch it: {why}", path.display())),
    })
}
