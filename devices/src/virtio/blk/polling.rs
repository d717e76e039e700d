//! Whether to wait for a driver awake.
//!
//! A driver that sends its next request as soon as it has the answer to the last makes the thread that
//! serves it sleep and wake for each, and itself leave the guest for each. Waiting awake for a moment
//! saves both, where the request does come; else it is lost time of a processor that the guest may need.

use std::time::{Duration, Instant};

/// How long to wait awake.
pub(super) const MOMENT: Duration = Duration::from_micros(30);

/// So many requests in a row must have come within the moment before the next is waited for.
const PROOF: u8 = 4;

/// What a driver has done so far.
#[derive(Default)]
pub(super) struct Polling {
    asleep_since: Option<Instant>,
    quick: u8,
}

impl Polling {
    /// The next request has to wake the thread.
    pub(super) fn sleeps(&mut self) {
        self.asleep_since = Some(Instant::now());
    }

    /// The thread is awake: by the driver, if it slept.
    pub(super) fn woken(&mut self) {
        let Some(since) = self.asleep_since.take() else { return };
        let quick = since.elapsed() < MOMENT;
        self.quick = if quick { self.quick.saturating_add(1) } else { 0 };
    }

    /// Whether the next request is to be waited for.
    pub(super) fn pays(&self) -> bool {
        self.quick >= PROOF
    }

    /// It was waited for in vain: what the driver has proven is worth nothing any more.
    pub(super) fn in_vain(&mut self) {
        self.quick = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn woken_after(polling: &mut Polling, time: Duration) {
        polling.asleep_since = Some(Instant::now().checked_sub(time).unwrap());
        polling.woken();
    }

    #[test]
    fn it_takes_some_quick_requests_and_one_slow_one() {
        let mut polling = Polling::default();
        polling.woken();
        for _ in 0..PROOF {
            assert!(!polling.pays());
            woken_after(&mut polling, Duration::ZERO);
        }
        assert!(polling.pays());
        woken_after(&mut polling, MOMENT);
        assert!(!polling.pays());
    }
}
