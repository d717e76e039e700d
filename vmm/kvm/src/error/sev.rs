//! Status codes of AMD's secure processor.

use std::fmt;

/// A status of the SEV firmware (`linux/psp-sev.h`, `sev_ret_code`; AMD's SEV-SNP Firmware ABI,
/// table "Status Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevStatus(pub u32);

impl SevStatus {
    /// The command is not allowed by the guest's policy or the platform's configuration.
    pub const POLICY_FAILURE: Self = Self(0x07);
    /// A signature does not verify.
    pub const BAD_SIGNATURE: Self = Self(0x0a);
    /// The launch digest is not the expected one.
    pub const BAD_MEASUREMENT: Self = Self(0x0b);
    /// A parameter is not valid; for a CPUID page, the firmware has put what it accepts into it.
    pub const INVALID_PARAM: Self = Self(0x16);
    /// KVM failed before it reached the firmware.
    pub const NOT_CALLED: Self = Self(u32::MAX);

    /// Whether the firmware had a say at all: KVM leaves 0 or -1 where it had not.
    #[must_use]
    pub fn was_called(self) -> bool {
        self.0 != 0 && self != Self::NOT_CALLED
    }

    /// The status's name and what it means.
    #[must_use]
    pub fn words(self) -> Option<(&'static str, &'static str)> {
        let found = STATUSES.iter().find(|(code, ..)| *code == self.0);
        found.map(|&(_, name, meaning)| (name, meaning))
    }
}

impl fmt::Display for SevStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.was_called() {
            return f.write_str("the firmware was not called");
        }
        match self.words() {
            Some((name, meaning)) => write!(f, "firmware status {:#x} {name}: {meaning}", self.0),
            None => write!(f, "firmware status {:#x}, not known to this program", self.0),
        }
    }
}

const STATUSES: &[(u32, &str, &str)] = &[
    (0x01, "INVALID_PLATFORM_STATE", "the platform is not in a state that allows the command"),
    (0x02, "INVALID_GUEST_STATE", "the guest is not in a state that allows the command"),
    (0x03, "INVALID_CONFIG", "the platform's configuration does not allow it"),
    (0x04, "INVALID_LEN", "a length is not valid"),
    (0x05, "ALREADY_OWNED", "the platform has an owner already"),
    (0x06, "INVALID_CERTIFICATE", "a certificate is not valid"),
    (0x07, "POLICY_FAILURE", "the guest's policy does not allow it"),
    (0x08, "INACTIVE", "the guest has no active ASID"),
    (0x09, "INVALID_ADDRESS", "an address is not valid"),
    (0x0a, "BAD_SIGNATURE", "a signature does not verify"),
    (0x0b, "BAD_MEASUREMENT", "the launch digest is not the expected one"),
    (0x0c, "ASID_OWNED", "the ASID belongs to another guest"),
    (0x0d, "INVALID_ASID", "the ASID is not valid"),
    (0x0e, "WBINVD_REQUIRED", "caches must be flushed first (WBINVD)"),
    (0x0f, "DFFLUSH_REQUIRED", "the data fabric must be flushed first (DF_FLUSH)"),
    (0x10, "INVALID_GUEST", "the guest handle or context page is not valid"),
    (0x11, "INVALID_COMMAND", "the firmware does not know the command"),
    (0x12, "ACTIVE", "the guest is active"),
    (0x13, "HWERROR_PLATFORM", "a hardware condition affected the platform"),
    (0x14, "HWERROR_UNSAFE", "a hardware condition makes it unsafe to go on"),
    (0x15, "UNSUPPORTED", "the firmware does not support it"),
    (0x16, "INVALID_PARAM", "a parameter is not valid"),
    (0x17, "RESOURCE_LIMIT", "the firmware is out of a resource"),
    (0x18, "SECURE_DATA_INVALID", "the firmware's stored data failed its integrity check"),
    (0x19, "INVALID_PAGE_SIZE", "the RMP has another size for the page"),
    (0x1a, "INVALID_PAGE_STATE", "the RMP has another state for the page"),
    (0x1b, "INVALID_MDATA_ENTRY", "a metadata entry is not valid"),
    (0x1c, "INVALID_PAGE_OWNER", "the page belongs to another guest"),
    (0x1d, "AEAD_OFLOW", "a sequence number would overflow"),
    (0x1f, "EXIT_RING_BUFFER", "the firmware's command ring was left"),
    (0x20, "RMP_INIT_REQUIRED", "the RMP is not initialised"),
    (0x21, "BAD_SVN", "a security version is lower than the committed one"),
    (0x22, "BAD_VERSION", "a version is lower than the committed one"),
    (0x23, "SHUTDOWN_REQUIRED", "the platform must be shut down first"),
    (0x24, "UPDATE_FAILED", "a firmware update failed"),
    (0x25, "RESTORE_REQUIRED", "a firmware update must be rolled back first"),
    (0x26, "RMP_INITIALIZATION_FAILED", "the RMP could not be initialised"),
    (0x27, "INVALID_KEY", "the key is not valid"),
    (0x28, "SHUTDOWN_INCOMPLETE", "the platform was not shut down completely"),
    (0x30, "INCORRECT_BUFFER_LENGTH", "a buffer has the wrong length"),
    (0x31, "EXPAND_BUFFER_LENGTH_REQUEST", "a buffer must be longer"),
    (0x32, "SPDM_REQUEST", "the firmware waits for an SPDM exchange"),
    (0x33, "SPDM_ERROR", "an SPDM exchange failed"),
    (0x3a, "IN_USE", "what the command is about is in use"),
];
