//! Which guests this machine can launch, and why not others.
//!
//! [`Facts::gather`] looks; [`findings`] judges what was seen, one [`Finding`] per line of
//! `casemate host`; [`check`] is for callers that are about to launch.

mod checks;
mod cpu;
mod facts;
mod files;
mod probe;
mod snp;
mod tdx;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use checks::findings;
pub use cpu::{Cpu, SevLeaf};
pub use facts::{Access, Facts, Kernel, Limit, Limits, Misc, SeLinux};
pub use probe::KvmFacts;

use casemate_launch::PlatformKind;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Guests can be launched, but something is slower or not there.
    Note,
    /// In the way of a launch.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: a short name.
    pub check: String,
    /// Whose launches it matters to.
    pub platforms: Vec<PlatformKind>,
    /// How it ended.
    pub state: State,
    /// What was seen, in words.
    pub says: String,
    /// What to do about it; there unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// Whether it prevents a launch on `platform`.
    #[must_use]
    pub fn blocks(&self, platform: PlatformKind) -> bool {
        self.state == State::Missing && self.platforms.contains(&platform)
    }
}

/// The check for hardware behind /dev/kvm.
pub const VIRTUALISATION: &str = "virtualisation";

/// Whether `platform` can be launched according to `findings`.
#[must_use]
pub fn can_launch(findings: &[Finding], platform: PlatformKind) -> bool {
    !findings.iter().any(|finding| finding.blocks(platform))
}

/// Looks at this machine before a launch on `platform`.
///
/// A KVM without [`VIRTUALISATION`] does not block plain guests here: it runs small programs.
///
/// # Errors
/// Findings that prevent a launch: without them a launch would fail with a bare errno.
pub fn check(platform: PlatformKind) -> Result<(), Vec<Finding>> {
    let mut blocking = findings(&Facts::gather(Path::new("/")));
    blocking.retain(|finding| {
        finding.blocks(platform)
            && (platform != PlatformKind::Plain || finding.check != VIRTUALISATION)
    });
    if blocking.is_empty() { Ok(()) } else { Err(blocking) }
}
