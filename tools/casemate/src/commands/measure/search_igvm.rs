//! `casemate measure --search REPORT --igvm FILE`

use std::path::Path;

use casemate_launch::igvm::ZeroPages;
use casemate_launch::measure::igvm::{measure_snp, measure_tdx};
use casemate_launch::rules::Profile;
use casemate_launch::{Digest384, PlatformKind};
use serde_json::json;

use super::search::Found;
use crate::commands::igvm;

/// Launchers of IGVM files, and their meaning of measured pages without data.
const LAUNCHERS: [(Profile, ZeroPages); 2] =
    [(Profile::Qemu, ZeroPages::Normal), (Profile::CloudHypervisor, ZeroPages::Native)];

/// Tries the platforms of a file with the rules of each launcher.
pub(super) fn search(
    target: PlatformKind,
    measurement: Digest384,
    path: &Path,
) -> anyhow::Result<Option<Found>> {
    let mut file = igvm::open(path)?;
    let platforms = file.platforms().to_vec();
    for platform in platforms.iter().filter(|platform| platform.kind == Some(target)) {
        let mask = Some(platform.mask);
        let mut launchers = Vec::new();
        for (launcher, zero_pages) in LAUNCHERS {
            let found = match target {
                PlatformKind::Tdx => measure_tdx(&mut file, mask)?,
                _ => match measure_snp(&mut file, mask, zero_pages)?.kvm {
                    Ok(digest) => digest,
                    Err(_) => continue,
                },
            };
            if found == measurement {
                launchers.push(launcher.name());
            }
        }
        if let Some(vmm) = launchers.first() {
            let mask = format!("{:#x}", platform.mask);
            let words = vec![
                format!("the IGVM file, launched by {}", launchers.join(" or ")),
                format!("compatibility mask {mask}"),
            ];
            let json = json!({ "vmm": vmm, "launchers": launchers, "compatibility_mask": mask });
            return Ok(Some((words, json)));
        }
    }
    Ok(None)
}
