//! Choices of a launcher that a configuration does not make.

use std::path::PathBuf;

use casemate_launch::igvm::ZeroPages;
use casemate_launch::rules::Profile;

/// The rules of a launcher. The default is `casemate run`; the commands that predict the launches of
/// other programs choose others.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Launcher whose registers and section rules apply. `None`: as `casemate run`, Casemate's own for
    /// its firmware, and QEMU's for OVMF.
    pub launcher: Option<Profile>,
    /// SEV_FEATURES of the vCPUs; `None` for SEV-SNP alone, as on hosts that add nothing.
    pub vmsa_features: Option<u64>,
    /// Guest policy of SEV-SNP; `None` for the one of the configuration.
    pub guest_policy: Option<u64>,
    /// Platform of an IGVM file that has several of one kind.
    pub compatibility_mask: Option<u32>,
    /// SVSM below the firmware of an SEV-SNP guest.
    pub svsm: Option<Svsm>,
    /// Meaning of an IGVM file's measured pages without data.
    pub zero_pages: ZeroPages,
    /// Whether a plain guest starts in firmware though its configuration names none: an IGVM file
    /// has the same memory on each platform.
    pub plain_firmware: bool,
}

/// An SVSM image that QEMU launches below OVMF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svsm {
    /// The image.
    pub file: PathBuf,
    /// Bytes of OVMF's variables, which lie between the two images.
    pub variables: u64,
}

impl Rules {
    /// Whether the plan is for `casemate run`, and not a prediction for another launcher.
    pub(crate) fn are_ours(&self) -> bool {
        self.launcher.is_none_or(|launcher| launcher == Profile::Casemate)
    }
}
