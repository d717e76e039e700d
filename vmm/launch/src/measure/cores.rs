//! Work on all cores. Threads that do not start leave their share to the others.

use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// More threads than this read memory more slowly than they hash it.
const MOST: usize = 8;

/// Runs `work` on the calling thread and on up to `others` more at once, until all have returned.
pub(super) fn on_cores(others: usize, work: impl Fn() + Sync) {
    if others == 0 {
        return work();
    }
    // The standard library reads files of control groups for it.
    static CORES: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get).min(MOST));
    thread::scope(|scope| {
        for _ in 0..others.min(*CORES - 1) {
            // Without it, the others do its share.
            let _ = thread::Builder::new().spawn_scoped(scope, &work);
        }
        work();
    });
}

/// The first number of `range` for which `holds`.
pub(super) fn find_first(
    range: RangeInclusive<u32>,
    holds: impl Fn(u32) -> bool + Sync,
) -> Option<u32> {
    let next = AtomicU64::new((*range.start()).into());
    let found = AtomicU64::new(u64::MAX);
    on_cores(MOST, || {
        // Numbers are taken in order, so that each one below a found one is or was taken by someone.
        while let Ok(number) = u32::try_from(next.fetch_add(1, Ordering::Relaxed))
            && range.contains(&number)
            && u64::from(number) < found.load(Ordering::Relaxed)
        {
            if holds(number) {
                found.fetch_min(number.into(), Ordering::Relaxed);
            }
        }
    });
    u32::try_from(found.into_inner()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_is_found_whoever_is_faster() {
        for at in [1, 2, 77, 255] {
            assert_eq!(find_first(1..=255, |number| number >= at), Some(at));
            assert_eq!(find_first(1..=255, |number| number == at), Some(at));
        }
        assert_eq!(find_first(1..=255, |_| false), None);
        assert_eq!(find_first(u32::MAX..=u32::MAX, |_| true), Some(u32::MAX));
    }
}
