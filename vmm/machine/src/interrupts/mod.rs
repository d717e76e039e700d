//! Signals between guest and devices. Interrupts: local APICs are KVM's, the I/O APIC is the VMM's, and
//! everything reaches a vCPU as a message. One way for all platforms: TDX does not have another.
//! Notifications of virtqueues stay in the kernel.

mod doorbells;
mod messages;

pub(crate) use doorbells::KvmDoorbells;
pub(crate) use messages::Messages;

use std::io;

use casemate_devices::interrupt::Message;
use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

/// The halves of a message's address.
fn halves(message: Message) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// Delivers a message at once. If no local APIC takes it, it is lost, as on the bus.
pub(crate) fn deliver(vm: &VmFd, message: Message) -> io::Result<()> {
    let (address_lo, address_hi) = halves(message);
    let msi = kvm_msi { address_lo, address_hi, data: message.data, ..kvm_msi::default() };
    match vm.signal_msi(msi) {
        // KVM's way to say that nobody took it: -1, which reads as this errno.
        Err(error) if error.errno() == libc::EPERM => Ok(()),
        outcome => outcome.map(drop).map_err(io::Error::from),
    }
}
