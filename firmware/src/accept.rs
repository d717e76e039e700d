//! Which memory the firmware accepts. The rest stays as it is, for the kernel to accept when it
//! uses it, so that a large guest starts as fast as a small one.

use crate::fatal::Fatal;
use crate::layout::{CPUID, GRANULE, HANDOFF, PAGE, SECRETS, WORK, WORK_SIZE};
use crate::window::Range;

/// Room for what is ever accepted.
const MOST: usize = 12;

/// What has been accepted. Each page is accepted once: a second time is how a host would put a page
/// of zeroes in the place of one that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    ranges: [Range; MOST],
    count: usize,
}

/// What must be accepted before the kernel's size is known, beside the launch pages and [`WORK`]:
/// the first granule and the rest of the one at 8 MiB.
pub const FIRST: [Range; 3] = [
    Range::between(0, GRANULE),
    Range::between(CPUID + PAGE, WORK),
    Range::between(HANDOFF, SECRETS + GRANULE),
];

impl Accepted {
    /// What is accepted when the firmware's Rust code begins: launch pages, and [`WORK`].
    #[must_use]
    pub fn at_start() -> Self {
        let mut ranges = [Range::default(); MOST];
        ranges[0] = Range { start: SECRETS, size: 2 * PAGE };
        ranges[1] = Range { start: WORK, size: WORK_SIZE };
        Self { ranges, count: 2 }
    }

    /// Notes that `range` is about to be accepted.
    ///
    /// # Errors
    /// [`Fatal::AcceptedTwice`] if a page of it was accepted before; [`Fatal::Room`] if there are
    /// more ranges than the firmware ever needs.
    pub fn claim(&mut self, range: Range) -> Result<(), Fatal> {
        if self.ranges().any(|accepted| accepted.overlaps(range)) {
            return Err(Fatal::AcceptedTwice);
        }
        let place = self.ranges.get_mut(self.count).ok_or(Fatal::Room)?;
        *place = range;
        self.count += 1;
        Ok(())
    }

    /// Whether the granule at `start` has been accepted, which is the case for all of it or for
    /// nothing of it once [`FIRST`] has.
    #[must_use]
    pub fn has_granule(&self, start: u64) -> bool {
        let granule = Range { start, size: GRANULE };
        self.ranges().any(|accepted| accepted.overlaps(granule))
    }

    fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges.iter().copied().take(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::KERNEL;

    #[test]
    fn no_page_is_accepted_twice() {
        let mut accepted = Accepted::at_start();
        for range in FIRST {
            accepted.claim(range).unwrap();
        }
        let kernel = Range { start: KERNEL, size: GRANULE };
        accepted.claim(kernel).unwrap();
        assert_eq!(accepted.claim(kernel), Err(Fatal::AcceptedTwice));
        let secrets = Range { start: SECRETS, size: PAGE };
        assert_eq!(accepted.claim(secrets), Err(Fatal::AcceptedTwice));
    }

    #[test]
    fn granules_are_whole() {
        let mut accepted = Accepted::at_start();
        for range in FIRST {
            accepted.claim(range).unwrap();
        }
        let bytes: u64 = accepted.ranges().map(|range| range.size).sum();
        assert_eq!(bytes, 2 * GRANULE);
        assert!(accepted.has_granule(0) && accepted.has_granule(SECRETS));
        assert!(!accepted.has_granule(GRANULE) && !accepted.has_granule(KERNEL));
    }
}
