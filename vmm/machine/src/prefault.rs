//! Memory that a guest gets before it touches it.
//!
//! A guest that accepts its memory touches every page of it, and leaves for the host at each that
//! is not there yet. Many pages at once are one ioctl. Nothing depends on it: what could not be
//! given, the guest gets when it touches it, or its end then says why not.

use casemate_kvm::memory::{PAGE_SIZE, prefault};
use casemate_launch::{Gpa, GpaRange};
use kvm_ioctls::VcpuFd;

use crate::outcome::End;

/// Bytes given at a time: a run that is to end waits no longer than for these.
const PIECE: u64 = 64 << 20;

/// Gives the guest `range`, until the run ends. `vcpu` must not be running.
pub(crate) fn give(vcpu: &VcpuFd, range: GpaRange, end: &End) {
    let mut start = range.start().0;
    while start < range.end().0 && end.outcome().is_none() {
        let size = PIECE.min(range.end().0 - start);
        if let Err(error) = prefault(vcpu, start, size) {
            tracing::debug!(%error, %range, "could not give the guest memory in advance");
            return;
        }
        start += size;
    }
}

/// What vCPU `index` of `count` gives of `range`: parts of the same size, side by side.
pub(crate) fn part(range: GpaRange, index: u32, count: u32) -> Option<GpaRange> {
    let pages = range.pages().0;
    let most = pages.div_ceil(count.max(1).into());
    let first = most.saturating_mul(index.into()).min(pages);
    let bytes = most.min(pages - first) * PAGE_SIZE;
    let start = Gpa(range.start().0 + first * PAGE_SIZE);
    GpaRange::from_bytes(start, bytes).ok().filter(|range| !range.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_vcpus_together_give_all_of_it_once() {
        for (pages, count) in [(1, 1), (7, 3), (2, 255), (65536, 16), (5, 4)] {
            let range = GpaRange::from_bytes(Gpa(0x10_0000), pages * PAGE_SIZE).unwrap();
            let parts: Vec<_> = (0..count).filter_map(|index| part(range, index, count)).collect();
            assert_eq!(parts[0].start(), range.start());
            assert!(parts.windows(2).all(|two| two[0].end() == two[1].start()));
            assert_eq!(parts.last().unwrap().end(), range.end());
        }
    }
}
