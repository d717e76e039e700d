//! Interrupts that are counted.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{Message, MessageInterrupt, MessageInterrupts};

/// Remembers the interrupts it gave out.
#[derive(Clone, Default)]
pub(crate) struct MockInterrupts(Arc<Mutex<Vec<Arc<MockInterrupt>>>>);

/// Route and number of triggers.
#[derive(Default)]
pub(crate) struct MockInterrupt(Mutex<(Option<Message>, u32)>);

impl MockInterrupts {
    pub(crate) fn of(&self, vector: usize) -> Arc<MockInterrupt> {
        Arc::clone(&self.0.lock().unwrap()[vector])
    }
}

impl MockInterrupt {
    pub(crate) fn route(&self) -> Option<Message> {
        self.0.lock().unwrap().0
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.lock().unwrap().1
    }
}

impl MessageInterrupts for MockInterrupts {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MessageInterrupt>>> {
        let mut all = self.0.lock().unwrap();
        let new: Vec<Arc<MockInterrupt>> = (0..count).map(|_| Arc::default()).collect();
        all.extend(new.iter().cloned());
        Ok(new.into_iter().map(|interrupt| interrupt as Arc<dyn MessageInterrupt>).collect())
    }
}

impl MessageInterrupt for MockInterrupt {
    fn route(&self, message: Option<Message>) -> io::Result<()> {
        self.0.lock().unwrap().0 = message;
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        assert!(state.0.is_some(), "a masked interrupt was raised");
        state.1 += 1;
        Ok(())
    }

    fn notifier(&self) -> Option<&EventFd> {
        None
    }
}
