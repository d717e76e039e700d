//! Message interrupts of PCI devices.
//!
//! A device of ours raises a message by a system call that carries it, and so needs no route. Only
//! who raises it from elsewhere (vhost, in the kernel) gets an eventfd with a route behind it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use casemate_devices::interrupt::{Message, MessageInterrupt, MessageInterrupts};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{deliver, halves};
use casemate_plan::board::gsi;

/// KVM_MAX_IRQ_ROUTES.
const GSI_END: u32 = 4096;

/// Where message interrupts come from.
pub(crate) struct Messages(Arc<Routes>);

struct Routes {
    vm: Arc<VmFd>,
    /// The next interrupt's number, the I/O APIC's being taken.
    next: Mutex<u32>,
    /// What KVM has been told: it takes all routes or none.
    table: Mutex<BTreeMap<u32, Message>>,
}

impl Messages {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        let (next, table) = (Mutex::new(gsi::COUNT.into()), Mutex::default());
        Self(Arc::new(Routes { vm, next, table }))
    }
}

impl MessageInterrupts for Messages {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MessageInterrupt>>> {
        let mut next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *next;
        let end = first + u32::from(count);
        if end > GSI_END {
            let problem = format!("{count} message interrupts more than the {GSI_END} there are");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, problem));
        }
        *next = end;
        Ok((first..end).map(|gsi| self.interrupt(gsi)).collect())
    }
}

impl Messages {
    fn interrupt(&self, gsi: u32) -> Arc<dyn MessageInterrupt> {
        let routes = self.0.clone();
        Arc::new(Interrupt { routes, gsi, message: Mutex::new(None), notifier: OnceLock::new() })
    }
}

struct Interrupt {
    routes: Arc<Routes>,
    gsi: u32,
    message: Mutex<Option<Message>>,
    notifier: OnceLock<EventFd>,
}

impl Interrupt {
    /// Ties the eventfd to its route, or unties it: then it counts what it is told, and KVM looks
    /// at the count when it is tied again.
    fn tie(&self, notifier: &EventFd, message: Option<Message>) -> io::Result<()> {
        let was_tied = self.routes.set(self.gsi, message)?;
        let vm = &self.routes.vm;
        match (was_tied, message) {
            (false, Some(_)) => vm.register_irqfd(notifier, self.gsi)?,
            (true, None) => vm.unregister_irqfd(notifier, self.gsi)?,
            _ => {}
        }
        Ok(())
    }

    fn make_notifier(&self) -> io::Result<EventFd> {
        let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        let notifier = EventFd::new(EFD_NONBLOCK)?;
        self.tie(&notifier, *message)?;
        Ok(notifier)
    }
}

impl MessageInterrupt for Interrupt {
    fn route(&self, message: Option<Message>) -> io::Result<()> {
        let mut current = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        *current = message;
        self.notifier.get().map_or(Ok(()), |notifier| self.tie(notifier, message))
    }

    fn trigger(&self) -> io::Result<()> {
        let message = *self.message.lock().unwrap_or_else(PoisonError::into_inner);
        message.map_or(Ok(()), |message| deliver(&self.routes.vm, message))
    }

    fn notifier(&self) -> Option<&EventFd> {
        if self.notifier.get().is_none() {
            match self.make_notifier() {
                Ok(notifier) => drop(self.notifier.set(notifier)),
                Err(error) => tracing::warn!(gsi = self.gsi, %error, "no eventfd for an interrupt"),
            }
        }
        self.notifier.get()
    }
}

impl Routes {
    /// Sets or removes a route; returns whether there was one.
    fn set(&self, gsi: u32, message: Option<Message>) -> io::Result<bool> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match message {
            Some(message) => table.insert(gsi, message),
            None => table.remove(&gsi),
        };
        if before != message {
            let entries: Vec<_> =
                table.iter().map(|(gsi, message)| entry(*gsi, *message)).collect();
            let routing = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
            self.vm.set_gsi_routing(&routing)?;
        }
        Ok(before.is_some())
    }
}

fn entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message);
    let msi =
        kvm_irq_routing_msi { address_lo, address_hi, data: message.data, ..Default::default() };
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = msi;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_kvm_has_routes() {
        let kvm = kvm_ioctls::Kvm::new().expect("this test needs /dev/kvm");
        let vm = kvm.create_vm().unwrap();
        let messages = Messages::new(Arc::new(vm));
        assert_eq!(messages.allocate(4000).unwrap().len(), 4000);
        let error = messages.allocate(89).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert_eq!(messages.allocate(88).unwrap().len(), 88);
    }
}
