//! What a report says, by name.

use serde::Serialize;

use crate::hex::Hex;
use crate::judgement::Trust;

use super::SigningKey;
use super::product::{Product, Tcb};
use super::report::Report;

/// The guest's own policy, fixed at launch (firmware ABI, "Guest Policy").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct GuestPolicy {
    /// All 64 bits.
    pub raw: u64,
    /// The lowest firmware ABI, minor.
    pub abi_minor: u8,
    /// The lowest firmware ABI, major.
    pub abi_major: u8,
    /// Bit 16.
    pub smt_allowed: bool,
    /// Bit 18.
    pub migration_agent_allowed: bool,
    /// Bit 19.
    pub debug_allowed: bool,
    /// Bit 20.
    pub single_socket_required: bool,
}

impl GuestPolicy {
    pub(crate) fn of(report: &Report) -> Self {
        let raw = report.policy.get();
        let bit = |number: u32| raw >> number & 1 == 1;
        let [abi_minor, abi_major, ..] = raw.to_le_bytes();
        GuestPolicy {
            raw,
            abi_minor,
            abi_major,
            smt_allowed: bit(16),
            migration_agent_allowed: bit(18),
            debug_allowed: bit(19),
            single_socket_required: bit(20),
        }
    }

    /// Bit 17 is one, bits 26 to 63 are zero.
    pub(crate) fn check_reserved(self) -> Result<String, String> {
        let raw = self.raw;
        if raw >> 17 & 1 == 0 {
            Err(format!("bit 17 of the guest's policy {raw:#x} must be one"))
        } else if raw >> 26 != 0 {
            Err(format!("the guest's policy {raw:#x} has bits above 25, which are reserved"))
        } else {
            Ok(format!("{raw:#x}"))
        }
    }
}

/// What a report says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SnpClaims {
    /// `"snp"`.
    pub platform: &'static str,
    /// Whom the root belongs to; null when it is not trusted.
    pub trust: Option<Trust>,
    /// The processor product; null when nothing says it.
    pub product: Option<Product>,
    /// The report's version.
    pub version: u32,
    /// The guest's security version.
    pub guest_svn: u32,
    /// The guest's policy.
    pub policy: GuestPolicy,
    /// The privilege level from which the report was asked for.
    pub vmpl: u32,
    /// The key that signed, as the report says it; null when it names neither.
    pub signing_key: Option<SigningKey>,
    /// The launch digest.
    pub measurement: Hex<48>,
    /// What the guest put in.
    pub report_data: Hex<64>,
    /// What the host gave at launch.
    pub host_data: Hex<32>,
    /// SHA-384 of the key that signed the ID block.
    pub id_key_digest: Hex<48>,
    /// SHA-384 of the key that signed the ID key.
    pub author_key_digest: Hex<48>,
    /// The family that the ID block named.
    pub family_id: Hex<16>,
    /// The image that the ID block named.
    pub image_id: Hex<16>,
    /// This guest instance.
    pub report_id: Hex<32>,
    /// The chip; zero when masked.
    pub chip_id: Hex<64>,
    /// Platform information bits.
    pub platform_info: u64,
    /// The TCB that the endorsement key is derived from.
    pub reported_tcb: Option<Tcb>,
    /// The TCB below which the firmware cannot go.
    pub committed_tcb: Option<Tcb>,
    /// The TCB that runs.
    pub current_tcb: Option<Tcb>,
    /// The TCB at the guest's launch.
    pub launch_tcb: Option<Tcb>,
}

impl SnpClaims {
    pub(crate) fn new(report: &Report, product: Option<Product>, trust: Option<Trust>) -> Self {
        let tcb = |bytes| product.map(|product| Tcb::from_bytes(bytes, product));
        SnpClaims {
            platform: "snp",
            trust,
            product,
            version: report.version.get(),
            guest_svn: report.guest_svn.get(),
            policy: GuestPolicy::of(report),
            vmpl: report.vmpl.get(),
            signing_key: SigningKey::of(report),
            measurement: Hex(report.measurement),
            report_data: Hex(report.report_data),
            host_data: Hex(report.host_data),
            id_key_digest: Hex(report.id_key_digest),
            author_key_digest: Hex(report.author_key_digest),
            family_id: Hex(report.family_id),
            image_id: Hex(report.image_id),
            report_id: Hex(report.report_id),
            chip_id: Hex(report.chip_id),
            platform_info: report.platform_info.get(),
            reported_tcb: tcb(report.reported_tcb),
            committed_tcb: tcb(report.committed_tcb),
            current_tcb: tcb(report.current_tcb),
            launch_tcb: tcb(report.launch_tcb),
        }
    }
}
