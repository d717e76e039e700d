//! How often a guest may start anew, and after which pause.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Restarts within [`PERIOD`] after which there is none.
pub const MOST: usize = 10;
/// Time in which they are counted.
pub const PERIOD: Duration = Duration::from_secs(60);
/// Restarts within [`PERIOD`] without a pause.
const AT_ONCE: usize = 2;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Restarts so far.
#[derive(Default)]
pub(crate) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Counts a restart, and returns the pause before it; `None` if there were too many.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Duration> {
        while self.0.front().is_some_and(|then| now.saturating_duration_since(*then) >= PERIOD) {
            self.0.pop_front();
        }
        let recent = self.0.len();
        if recent >= MOST {
            return None;
        }
        self.0.push_back(now);
        let Some(doublings) = recent.checked_sub(AT_ONCE) else { return Some(Duration::ZERO) };
        let doublings = u32::try_from(doublings).unwrap_or(u32::MAX);
        let pause = 2_u32.checked_pow(doublings).map(|factor| FIRST_PAUSE.saturating_mul(factor));
        Some(pause.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_that_resets_at_once_starts_ten_times_ever_more_slowly() {
        let (mut restarts, mut now) = (Restarts::default(), Instant::now());
        let mut pauses = Vec::new();
        while let Some(pause) = restarts.next(now) {
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        // A minute after the first, one may start again.
        assert!(restarts.next(now + PERIOD).is_some());
    }

    #[test]
    fn guest_that_resets_now_and_then_starts_without_a_pause() {
        let (mut restarts, mut now) = (Restarts::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(restarts.next(now), Some(Duration::ZERO));
            now += PERIOD / 2;
        }
        assert!(restarts.0.len() <= 2);
    }
}
