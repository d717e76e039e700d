//! Doorbells that are remembered.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use super::Doorbells;

/// The addresses where doorbells hang; refuses all while `closed`.
#[derive(Default)]
pub(crate) struct MockDoorbells {
    pub(crate) addresses: Mutex<BTreeSet<u64>>,
    pub(crate) closed: bool,
}

impl Doorbells for MockDoorbells {
    fn register(&self, gpa: u64, _: &EventFd) -> io::Result<()> {
        if self.closed {
            return Err(io::ErrorKind::Unsupported.into());
        }
        assert!(self.addresses.lock().unwrap().insert(gpa), "{gpa:#x} is registered already");
        Ok(())
    }

    fn unregister(&self, gpa: u64, _: &EventFd) -> io::Result<()> {
        assert!(self.addresses.lock().unwrap().remove(&gpa), "{gpa:#x} was not registered");
        Ok(())
    }
}
