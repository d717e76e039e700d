//! Memory that a guest gets before it touches it.
//!
//! A guest that accepts its memory touches every page of it, and leaves for the host at each that
//! is not there yet. Many pages at once are one ioctl. Nothing depends on it: what could not be
//! given, the guest gets when it touches it, or its end then says why not.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

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

/// vCPUs that give at the same time before the guest runs. More would only wait for each other, at the
/// locks of the host's kernel.
const GIVERS: u32 = 4;

/// Where vCPUs wait until the guest has what it gets before it runs, and all threads have given up their
/// rights. Without its memory the guest would not get far, and its other vCPUs would keep processors busy that
/// the first ones need.
#[derive(Default)]
pub(crate) struct Gate {
    keys: Mutex<u32>,
    open: Condvar,
}

impl Gate {
    /// A gate, and a key of it for each of `vcpus` vCPUs and for one other thread.
    pub(crate) fn new(vcpus: u32) -> (Arc<Self>, Vec<Key>, Key) {
        let gate = Arc::new(Self::default());
        *gate.keys.lock().unwrap_or_else(PoisonError::into_inner) = vcpus + 1;
        let key = |index| Key { gate: gate.clone(), index, givers: vcpus.min(GIVERS) };
        let (keys, other) = ((0..vcpus).map(key).collect(), key(vcpus));
        (gate, keys, other)
    }

    /// Waits until no key is left.
    pub(crate) fn pass(&self) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.open.wait_while(keys, |keys| *keys > 0));
    }
}

/// Keeps the gate shut. It opens when the last key is dropped.
pub(crate) struct Key {
    gate: Arc<Gate>,
    index: u32,
    givers: u32,
}

impl Key {
    /// Gives the part of each of `ranges` of the vCPU with this key, and drops the key.
    pub(crate) fn give(self, vcpu: &VcpuFd, ranges: &[GpaRange], end: &End) {
        for range in ranges.iter().filter_map(|range| part(*range, self.index, self.givers)) {
            give(vcpu, range, end);
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        *self.gate.keys.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.gate.open.notify_all();
    }
}

/// What number `index` of `count` gives of `range`: parts of the same size, side by side.
fn part(range: GpaRange, index: u32, count: u32) -> Option<GpaRange> {
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
    fn gate_opens_when_the_last_key_is_gone() {
        for vcpus in [1, 3, 255] {
            let (gate, keys, other) = Gate::new(vcpus);
            assert_eq!(keys.len(), vcpus as usize);
            let waiting = std::thread::spawn(move || gate.pass());
            for key in keys.into_iter().chain([other]) {
                assert!(!waiting.is_finished());
                drop(key);
            }
            waiting.join().unwrap();
        }
    }

    #[test]
    fn all_together_give_all_of_it_once() {
        for (pages, count) in [(1, 1), (7, 3), (2, 255), (65536, 16), (5, 4)] {
            let range = GpaRange::from_bytes(Gpa(0x10_0000), pages * PAGE_SIZE).unwrap();
            let parts: Vec<_> = (0..count).filter_map(|index| part(range, index, count)).collect();
            assert_eq!(parts[0].start(), range.start());
            assert!(parts.windows(2).all(|two| two[0].end() == two[1].start()));
            assert_eq!(parts.last().unwrap().end(), range.end());
        }
    }
}
