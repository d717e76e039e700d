//! Which memory the firmware accepts. The rest stays as it is, for the kernel to accept when it
//! uses it, so that a large guest starts as fast as a small one.

use crate::config::Platform;
use crate::fatal::Fatal;
use crate::layout::{CPUID, GRANULE, HANDOFF, HOB, HOB_SIZE, PAGE, SECRETS, WORK, WORK_SIZE};
use crate::window::{MOST_RANGES, Range};

/// Room for what is ever accepted: by the launch, at first, for the kernel (twice, as its size is read
/// of its file) and the initrd, and what is between and behind them.
const MOST: usize = 2 + 3 + 3 + 4 + MOST_RANGES;

/// What has been accepted. Each page is accepted once: a second time is how a host would put a page
/// of zeroes in the place of one that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    ranges: [Range; MOST],
    count: usize,
}

/// What the launch has accepted: its pages, and [`WORK`].
const fn launched(platform: Platform) -> [Range; 2] {
    let pages = match platform {
        Platform::Tdx => Range { start: HOB, size: HOB_SIZE },
        Platform::Plain | Platform::Snp => Range::between(SECRETS, CPUID + PAGE),
    };
    [pages, Range { start: WORK, size: WORK_SIZE }]
}

/// What must be accepted before the kernel's size is known: the first granule, and of the one at
/// 8 MiB all that the launch has not.
#[must_use]
pub const fn first(platform: Platform) -> [Range; 3] {
    let rest = match platform {
        Platform::Tdx => Range::between(SECRETS, HOB),
        Platform::Plain | Platform::Snp => Range { start: HOB, size: HOB_SIZE },
    };
    [Range::between(0, GRANULE), rest, Range::between(HANDOFF, SECRETS + GRANULE)]
}

impl Accepted {
    /// What is accepted when the firmware's Rust code begins.
    #[must_use]
    pub fn at_start(platform: Platform) -> Self {
        let mut ranges = [Range::default(); MOST];
        let launched = launched(platform);
        ranges[..launched.len()].copy_from_slice(&launched);
        Self { ranges, count: launched.len() }
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

    /// The first part of `range` that has not been accepted.
    #[must_use]
    pub fn gap(&self, range: Range) -> Option<Range> {
        let mut start = range.start;
        while let Some(accepted) = self.ranges().find(|accepted| accepted.has(start)) {
            start = accepted.end();
        }
        let next = self.ranges().map(|accepted| accepted.start).filter(|next| *next > start);
        let gap = Range::between(start, next.fold(range.end(), u64::min));
        (gap.size > 0).then_some(gap)
    }

    /// What has been accepted. Once [`first`] has, the granules that it touches are all accepted.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges.iter().copied().take(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::KERNEL;

    const PLATFORMS: [Platform; 3] = [Platform::Plain, Platform::Snp, Platform::Tdx];

    fn with_first(platform: Platform) -> Accepted {
        let mut accepted = Accepted::at_start(platform);
        for range in first(platform) {
            accepted.claim(range).unwrap();
        }
        accepted
    }

    #[test]
    fn no_page_is_accepted_twice() {
        for platform in PLATFORMS {
            let mut accepted = with_first(platform);
            let kernel = Range { start: KERNEL, size: GRANULE };
            accepted.claim(kernel).unwrap();
            assert_eq!(accepted.claim(kernel), Err(Fatal::AcceptedTwice));
            let secrets = Range { start: SECRETS, size: PAGE };
            assert_eq!(accepted.claim(secrets), Err(Fatal::AcceptedTwice));
        }
    }

    #[test]
    fn granules_are_whole() {
        for accepted in PLATFORMS.map(with_first) {
            let bytes: u64 = accepted.ranges().map(|range| range.size).sum();
            assert_eq!(bytes, 2 * GRANULE);
            let touched = accepted.ranges().map(|range| range.granules().start);
            assert!(touched.into_iter().all(|start| [0, SECRETS].contains(&start)));
        }
    }

    /// With as many pieces as there can be, and each only once.
    #[test]
    fn gaps_are_all_that_is_left() {
        for platform in PLATFORMS {
            let mut accepted = with_first(platform);
            let low = Range { start: 0, size: 300 * GRANULE + PAGE };
            for (start, granules) in [(KERNEL, 5), (KERNEL + 5 * GRANULE, 2), (290 * GRANULE, 3)] {
                accepted.claim(Range { start, size: granules * GRANULE }).unwrap();
            }
            let high = (4..11).map(|gib| Range { start: gib << 30, size: GRANULE });
            for range in [low].into_iter().chain(high) {
                while let Some(gap) = accepted.gap(range) {
                    accepted.claim(gap).unwrap();
                }
            }
            let bytes: u64 = accepted.ranges().map(|range| range.size).sum();
            assert_eq!(bytes, low.size + 7 * GRANULE);
        }
    }
}
