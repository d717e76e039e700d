//! Memory that all streams of a device may take together. Each is granted a window, which the guest
//! learns as its credit (VIRTIO 1.2, section 5.10.6.3).

/// Streams and greetings at most, so that neither side can exhaust the process's descriptors.
pub(super) const MOST_STREAMS: usize = 1000;

/// Bytes of all windows together.
pub(super) const BUDGET: u32 = 16 << 20;
/// Window of a stream that is one of few.
pub(super) const LARGEST: u32 = 256 << 10;
/// Window of a stream that is one of [`MOST_STREAMS`].
const SMALLEST: u32 = 8 << 10;
/// Part of what is free that one stream gets.
const SHARE: u32 = 8;

const _: () = assert!(SMALLEST as usize * MOST_STREAMS <= BUDGET as usize);

/// What is granted.
#[derive(Default)]
pub(super) struct Budget {
    streams: u32,
    granted: u32,
}

impl Budget {
    /// A window for another stream; `None` if there are [`MOST_STREAMS`].
    pub(super) fn grant(&mut self) -> Option<u32> {
        let others = u32::try_from(MOST_STREAMS).ok()?.checked_sub(self.streams + 1)?;
        // Each of the others can still have the smallest window.
        let free = BUDGET - self.granted - others * SMALLEST;
        let window = SMALLEST + ((free - SMALLEST) / SHARE).min(LARGEST - SMALLEST);
        self.streams += 1;
        self.granted += window;
        Some(window)
    }

    /// A stream with this window has ended.
    pub(super) fn release(&mut self, window: u32) {
        self.streams = self.streams.saturating_sub(1);
        self.granted = self.granted.saturating_sub(window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_streams_get_large_windows_and_all_stay_within_the_budget() {
        let mut budget = Budget::default();
        let windows: Vec<u32> = (0..MOST_STREAMS).map(|_| budget.grant().unwrap()).collect();
        assert_eq!(windows[..16], [LARGEST; 16]);
        assert!(windows.iter().all(|window| (SMALLEST..=LARGEST).contains(window)));
        assert!(windows.iter().sum::<u32>() <= BUDGET);
        assert_eq!(budget.grant(), None);
        for window in windows {
            budget.release(window);
        }
        assert_eq!(budget.grant(), Some(LARGEST));
    }
}
