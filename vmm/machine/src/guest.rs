//! A guest that is ready to be launched.

use casemate_config::GuestConfig;
use casemate_devices::legacy::fw_cfg::Items;
use casemate_launch::{LaunchPlan, PlatformKind};
use casemate_plan::{Board, Boot, GuestPlan, PlanError, Rules, plan};

use crate::firmware_config;

/// A guest that is ready to be launched, any number of times.
pub struct Guest {
    pub(crate) config: GuestConfig,
    pub(crate) board: Board,
    pub(crate) plan: LaunchPlan,
    /// Of a guest whose firmware is not ours, and expects QEMU's q35 machine.
    pub(crate) firmware_config: Option<Items>,
}

impl Guest {
    /// Makes the plan of the guest that `config` describes, without a look at /dev/kvm.
    ///
    /// # Errors
    /// If a file cannot be read, is of the wrong kind, or does not fit.
    pub fn new(config: GuestConfig, platform: PlatformKind) -> Result<Self, PlanError> {
        let GuestPlan { launch, board, boot, .. } = plan(&config, platform, &Rules::default())?;
        let items = |boot| firmware_config::items(&board, config.vcpus, boot);
        let firmware_config = match boot {
            Boot::Direct | Boot::Window(_) => None,
            Boot::FirmwareConfig(files) => Some(items(files.as_ref())),
            Boot::Igvm => Some(items(None)),
        };
        Ok(Self { config, board, plan: launch, firmware_config })
    }

    /// The configuration it was made from.
    #[must_use]
    pub const fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// The pages that enter its memory, and the registers of its vCPUs.
    #[must_use]
    pub const fn plan(&self) -> &LaunchPlan {
        &self.plan
    }
}
