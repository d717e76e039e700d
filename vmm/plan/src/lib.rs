//! The builder of launch plans: [`plan`] turns a guest's configuration, the files that it names and a
//! platform into a [`LaunchPlan`].
//!
//! It is the only way to a plan. `casemate run` launches the plan, `measure` and `verify --expect`
//! measure it, `igvm build` exports it and `explain` describes it, so that they agree. A guest that
//! cannot be launched has no plan, and therefore no measurement.
//!
//! The crate needs no KVM. The host's processor does not enter a plan, unless the configuration names
//! it (`snp.vcpu_type = "host"`).

#![forbid(unsafe_code)]

pub mod acpi;
pub mod board;
mod direct;
mod error;
mod files;
mod firmware;
mod igvm;
mod policy;
mod rules;

use casemate_config::GuestConfig;
use casemate_launch::loader_window::Payloads;
use casemate_launch::rules::Profile;
use casemate_launch::{LaunchPlan, PlatformKind};

pub use board::Board;
pub use error::PlanError;
pub use files::{BootFiles, MAX_FIRMWARE, MAX_PAYLOAD, read};
pub use firmware::launch_digest;
pub use igvm::IgvmLaunchError;
pub use rules::{Rules, Svsm};

/// A guest that can be launched: its plan, and the machine around it.
#[derive(Clone)]
pub struct GuestPlan {
    /// The pages, vCPUs, policy and identity.
    pub launch: LaunchPlan,
    /// The memory, laid out.
    pub board: Board,
    /// The way in which the guest gets its kernel.
    pub boot: Boot,
    /// The launcher whose rules the plan follows.
    pub launcher: Profile,
}

/// The way in which a guest gets its kernel, and learns about its machine.
#[derive(Clone)]
pub enum Boot {
    /// A plain guest starts in its kernel.
    Direct,
    /// Casemate's firmware copies it from the loader window.
    Window(Payloads),
    /// OVMF or a TDVF reads it from the firmware configuration device, if there is one.
    FirmwareConfig(Option<BootFiles>),
    /// The IGVM file has it.
    Igvm,
}

/// The plan of the guest that `config` describes, launched on `platform` by these rules.
///
/// # Errors
/// A file cannot be read or is of the wrong kind, or no launch follows from the configuration.
pub fn plan(
    config: &GuestConfig,
    platform: PlatformKind,
    rules: &Rules,
) -> Result<GuestPlan, PlanError> {
    // Casemate's firmware serves in a plain guest only to show its log.
    let firmware = config.firmware.is_some() || config.firmware_log || rules.plain_firmware;
    let plan = match (&config.igvm, platform) {
        (Some(_), _) => igvm::plan(config, platform, rules)?,
        (None, PlatformKind::Plain) if !firmware => direct::plan(config)?,
        (None, _) => firmware::plan(config, platform, rules)?,
    };
    match plan.launch.overlap() {
        Some((first, second)) => Err(PlanError::overlap(first, second)),
        None => Ok(plan),
    }
}

/// The platforms that a configuration allows, in the order in which `auto` tries them.
#[must_use]
pub fn platforms(config: &GuestConfig) -> &'static [PlatformKind] {
    config.platform.platforms()
}

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
