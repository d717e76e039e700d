//! Notifications of virtqueues: KVM turns the guest's write into an event (KVM_IOEVENTFD).

use std::io;
use std::sync::Arc;

use casemate_devices::doorbell::Doorbells;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Doorbells of a VM.
pub(crate) struct KvmDoorbells(pub(crate) Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn register(&self, gpa: u64, kick: &EventFd) -> io::Result<()> {
        // No value to match means any length as well.
        Ok(self.0.register_ioevent(kick, &IoEventAddress::Mmio(gpa), NoDatamatch)?)
    }

    fn unregister(&self, gpa: u64, kick: &EventFd) -> io::Result<()> {
        Ok(self.0.unregister_ioevent(kick, &IoEventAddress::Mmio(gpa), NoDatamatch)?)
    }
}
