//! Whether the guest's cable is plugged in: it is until somebody takes the tap away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::DeviceControl;
use super::link::Link;

/// The link as the configuration space shows it. It stays down: a tap does not come back to its file.
#[derive(Clone, Default)]
pub(super) struct Carrier(Arc<AtomicBool>);

impl Carrier {
    pub(super) fn is_down(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Whether the host has taken `link` away. Tells the host's owner and the driver, once.
    pub(super) fn is_lost(&self, link: &dyn Link, control: &DeviceControl) -> bool {
        if !link.is_gone() {
            return false;
        }
        if !self.0.swap(true, Ordering::AcqRel) {
            tracing::error!("the host took the tap {} away: the guest's link is down", link.name());
            control.config_changed();
        }
        true
    }
}
