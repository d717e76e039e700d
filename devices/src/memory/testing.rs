//! Both halves of a guest's pages, for tests without KVM.

use std::ops::Range;

use super::*;

/// Shared halves that are memory, and private ones that are nothing.
pub(crate) struct Shared<'a>(pub(crate) &'a DeviceMemory);

impl Halves for Shared<'_> {
    type Error = std::io::Error;

    fn switch(&self, _: Range<GuestAddress>, _: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn discard_other(&self, range: Range<GuestAddress>, private: bool) -> std::io::Result<()> {
        let length = range.end.0 - range.start.0;
        if private { discard(self.0, range.start, length) } else { Ok(()) }
    }
}
