//! How much of its memory a confidential guest shares with the host, and how often it changes its mind.

use std::collections::{BTreeMap, HashMap};

use casemate_launch::GpaRange;

/// Memory that a guest shares with the host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedMemory {
    /// Now.
    pub current: u64,
    /// The most that it ever was.
    pub peak: u64,
    /// The most that it may be, if there is a limit.
    pub limit: Option<u64>,
}

/// How often the accesses of vCPUs may change one page to and fro. Kernels do it a few times, for the
/// page where processors start and for a kernel that takes over; one page that two vCPUs use
/// differently would keep them busy for ever.
const MOST_TURNS: u32 = 1_000;

/// Pages whose turns are remembered. Where there are more, all counts begin again: what a guest can
/// make this process remember is bounded.
const REMEMBERED: usize = 4_096;

/// The account of a guest's shared memory.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    memory: SharedMemory,
    /// Disjoint ranges that do not touch: start to end.
    ranges: BTreeMap<u64, u64>,
    turns: HashMap<u64, u32>,
}

impl Ledger {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { memory: SharedMemory { limit, ..SharedMemory::default() }, ..Self::default() }
    }

    pub(crate) const fn memory(&self) -> SharedMemory {
        self.memory
    }

    /// The bytes by which `parts` would exceed the limit if they were shared; 0 if they fit. What is
    /// shared already costs nothing.
    pub(crate) fn excess(&self, parts: impl Iterator<Item = GpaRange>) -> u64 {
        let Some(limit) = self.memory.limit else { return 0 };
        let more: u64 = parts.map(|part| part.len() - self.within(part)).sum();
        (self.memory.current + more).saturating_sub(limit)
    }

    /// Bytes of `range` that are shared.
    pub(crate) fn within(&self, range: GpaRange) -> u64 {
        let (start, end) = (range.start().0, range.end().0);
        let touching = self.ranges.range(..end).rev().take_while(|(_, to)| **to > start);
        touching.map(|(from, to)| end.min(*to) - start.max(*from)).sum()
    }

    /// `range` is shared now.
    pub(crate) fn share(&mut self, range: GpaRange) {
        self.memory.current += range.len() - self.within(range);
        self.memory.peak = self.memory.peak.max(self.memory.current);
        let (mut start, mut end) = (range.start().0, range.end().0);
        // Neighbours as well: a guest that shares page by page leaves one range.
        while let Some((&from, &to)) = self.ranges.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.ranges.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.ranges.insert(start, end);
    }

    /// `range` is private now.
    pub(crate) fn withdraw(&mut self, range: GpaRange) {
        self.memory.current -= self.within(range);
        let (start, end) = (range.start().0, range.end().0);
        while let Some((&from, &to)) = self.ranges.range(..end).next_back() {
            if to <= start {
                break;
            }
            self.ranges.remove(&from);
            if to > end {
                self.ranges.insert(end, to);
            }
            if from < start {
                self.ranges.insert(from, start);
            }
        }
    }

    /// Whether the page at `gpa` may once more be changed by an access.
    pub(crate) fn may_turn(&mut self, gpa: u64) -> bool {
        if self.turns.len() >= REMEMBERED {
            self.turns.clear();
        }
        let turns = self.turns.entry(gpa).or_default();
        *turns += 1;
        *turns <= MOST_TURNS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use casemate_launch::Gpa;
    use proptest::prelude::*;

    use super::*;

    fn pages(first: u64, count: u64) -> GpaRange {
        GpaRange::from_bytes(Gpa(first * 0x1000), count * 0x1000).unwrap()
    }

    proptest! {
        /// As a set of pages would have it.
        #[test]
        fn what_is_shared_is_counted_once(
            steps in proptest::collection::vec((0..40_u64, 1..12_u64, any::<bool>()), 0..60)
        ) {
            let mut ledger = Ledger::new(Some(20 * 0x1000));
            let (mut model, mut peak) = (BTreeSet::new(), 0);
            for (first, count, share) in steps {
                let range = pages(first, count);
                let after = model.iter().copied().chain(first..first + count);
                let after = after.collect::<BTreeSet<_>>().len() as u64;
                let excess = after.saturating_sub(20) * 0x1000;
                prop_assert_eq!(ledger.excess(std::iter::once(range)), excess);
                if share {
                    ledger.share(range);
                    model.extend(first..first + count);
                } else {
                    ledger.withdraw(range);
                    model.retain(|page| !(first..first + count).contains(page));
                }
                peak = peak.max(model.len());
                prop_assert_eq!(ledger.memory.current, model.len() as u64 * 0x1000);
                prop_assert_eq!(ledger.memory.peak, peak as u64 * 0x1000);
                let ends: Vec<_> = ledger.ranges.iter().map(|(from, to)| (*from, *to)).collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }

    #[test]
    fn a_page_may_turn_often_but_not_for_ever() {
        let mut ledger = Ledger::default();
        assert!((0..MOST_TURNS).all(|_| ledger.may_turn(0x1000)));
        assert!(!ledger.may_turn(0x1000) && ledger.may_turn(0x2000));
        for page in 0..3 * REMEMBERED as u64 {
            assert!(ledger.may_turn(page << 13));
        }
        assert!(ledger.turns.len() <= REMEMBERED);
    }
}
