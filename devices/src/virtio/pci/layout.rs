//! Where the parts of a virtio device lie in its BAR, and the capabilities that say so (VIRTIO 1.2,
//! section 4.1.4).

use crate::pci::{ConfigSpace, Identity, MSIX_CAPABILITY, Msix};
use crate::virtio::DeviceKind;

/// Size of the BAR.
pub(super) const BAR_SIZE: u32 = 0x4000;
/// Common configuration.
pub(super) const COMMON: u32 = 0x0000;
/// Length of the common configuration, up to and without the fields that only optional features
/// give a meaning (`queue_notify_data`, `queue_reset`).
pub(super) const COMMON_LEN: u32 = 0x38;
/// The ISR status byte.
pub(super) const ISR: u32 = 0x0400;
/// The device's own configuration.
pub(super) const DEVICE: u32 = 0x0800;
/// Notifications: one word per queue, so that each has its own doorbell.
pub(super) const NOTIFY: u32 = 0x1000;
/// Distance of two queues' words.
pub(super) const NOTIFY_STRIDE: u32 = 4;
/// MSI-X table.
pub(super) const MSIX_TABLE: u32 = 0x2000;
/// MSI-X pending bits.
pub(super) const MSIX_PENDING: u32 = 0x3000;
/// Queues that a device may have: with a vector for each and one more, the table is full.
pub(super) const MAX_QUEUES: usize = 255;

/// Vendor-specific capability, as virtio's are (PCI Local Bus 3.0, appendix H).
const VENDOR_CAPABILITY: u8 = 0x09;

/// Advanced features of a conventional device (PCI-SIG, Advanced Capabilities for Conventional PCI ECN):
/// pending transactions are told, which is never, and the function can be reset.
const ADVANCED_FEATURES: u8 = 0x13;
const TRANSACTIONS_PENDING: u8 = 1 << 0;
const FUNCTION_RESET: u8 = 1 << 1;

/// Capability types (section 4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

/// Offsets in the configuration space that the transport looks at itself.
pub(super) struct Offsets {
    /// MSI-X message control.
    pub(super) msix_control: usize,
    /// The control byte of the advanced features: bit 0 resets the function.
    pub(super) function_reset: usize,
    /// The capability through which the BAR can be reached from configuration space.
    pub(super) window: usize,
}

/// The configuration space of a device of `kind`.
pub(super) fn config_space(kind: DeviceKind, queues: u16, msix: &Msix) -> (ConfigSpace, Offsets) {
    // Section 4.1.2.1; the revision and subsystem of a device that is not transitional.
    let device = 0x1040 + kind as u16;
    let identity = Identity {
        vendor: 0x1af4,
        device,
        class: class(kind),
        revision: 1,
        subsystem: (0x1af4, device),
    };
    let mut space = ConfigSpace::new(identity, BAR_SIZE);
    let (body, writable) = msix.capability(MSIX_TABLE, MSIX_PENDING);
    let msix_control = space.add_capability(MSIX_CAPABILITY, &body, &writable) + 2;
    for (kind, offset, len) in [
        (TYPE_COMMON, COMMON, COMMON_LEN),
        (TYPE_ISR, ISR, 1),
        (TYPE_DEVICE, DEVICE, NOTIFY - DEVICE),
    ] {
        space.add_capability(VENDOR_CAPABILITY, &structure::<14>(kind, offset, len), &[]);
    }
    let mut notify = structure::<18>(TYPE_NOTIFY, NOTIFY, u32::from(queues) * NOTIFY_STRIDE);
    notify[14..].copy_from_slice(&NOTIFY_STRIDE.to_le_bytes());
    space.add_capability(VENDOR_CAPABILITY, &notify, &[]);
    // The driver chooses BAR, offset, length and data of an access (section 4.1.4.9).
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = structure::<18>(TYPE_PCI, 0, 0);
    let window = space.add_capability(VENDOR_CAPABILITY, &window, &writable);
    // Length, features, control, status.
    let body = [6, TRANSACTIONS_PENDING | FUNCTION_RESET, 0, 0];
    let function_reset = space.add_capability(ADVANCED_FEATURES, &body, &[0, 0, 1, 0]) + 4;
    (space, Offsets { msix_control, function_reset, window })
}

/// `struct virtio_pci_cap` (section 4.1.4) after its id and link, with room for what follows it.
fn structure<const N: usize>(kind: u8, offset: u32, len: u32) -> [u8; N] {
    let mut body = [0; N];
    body[0] = u8::try_from(N + 2).unwrap_or(u8::MAX);
    body[1] = kind;
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[10..14].copy_from_slice(&len.to_le_bytes());
    body
}

/// Class, subclass and interface (PCI Code and ID Assignment 1.11): for people who list devices,
/// drivers go by the device.
fn class(kind: DeviceKind) -> u32 {
    match kind {
        DeviceKind::Net => 0x02_00_00,
        DeviceKind::Block => 0x01_80_00,
        DeviceKind::Console => 0x07_80_00,
        DeviceKind::Entropy => 0x10_80_00,
        DeviceKind::Balloon => 0x05_80_00,
        DeviceKind::Vsock => 0x02_80_00,
    }
}
