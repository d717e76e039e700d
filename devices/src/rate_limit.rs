//! Limits on bytes and operations per second, as token buckets that may go into debt.
//!
//! An operation may begin when no bucket is in debt, and is charged in full once its size is
//! known. So an operation of any size goes through, however small the limit; the next one waits
//! until the debt is paid. The average is exact: balances are whole numbers in units of one
//! billionth of a token, and nothing is rounded away between two looks at the clock.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// Units of balance in one token; a bucket of `rate` tokens per second earns `rate` units per
/// nanosecond.
const UNITS_PER_TOKEN: i128 = 1_000_000_000;

/// How much of a second's tokens a bucket can save up.
const BURST: Duration = Duration::from_millis(100);

/// What may be used per second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of payload per second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Requests or packets per second.
    pub operations_per_second: Option<NonZeroU64>,
}

/// One limit, to be shared by all queues that it holds for.
#[derive(Debug)]
pub struct RateLimit(Mutex<Buckets>);

impl RateLimit {
    /// A limiter with full buckets; `None` where nothing is limited.
    #[must_use]
    pub fn new(limits: Limits) -> Option<Arc<Self>> {
        let limited = limits.bytes_per_second.or(limits.operations_per_second).is_some();
        limited.then(|| Arc::new(Self(Mutex::new(Buckets::new(limits, Instant::now())))))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Buckets) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A queue's view of a [`RateLimit`], with the timer that tells it to go on.
#[derive(Debug)]
pub struct Throttle {
    limit: Option<Arc<RateLimit>>,
    timer: TimerFd,
    waiting: bool,
}

impl Throttle {
    /// # Errors
    /// If the host has no more timers.
    pub fn new(limit: Option<Arc<RateLimit>>) -> io::Result<Self> {
        Ok(Self { limit, timer: TimerFd::new()?, waiting: false })
    }

    /// Whether an operation may begin now. If not, the timer will become readable when one may.
    ///
    /// # Errors
    /// If the timer cannot be set.
    pub fn may_begin(&mut self) -> io::Result<bool> {
        let Some(limit) = &self.limit else { return Ok(true) };
        if self.waiting {
            return Ok(false);
        }
        let Some(wait) = limit.with(|buckets| buckets.wait(Instant::now())) else {
            return Ok(true);
        };
        self.timer.reset(wait, None)?;
        self.waiting = true;
        Ok(false)
    }

    /// Charges one operation of `bytes` bytes, which has begun.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(limit) = &self.limit {
            limit.with(|buckets| buckets.charge(bytes));
        }
    }

    /// To be called when the timer is readable.
    ///
    /// # Errors
    /// If the timer cannot be read.
    pub fn timer_fired(&mut self) -> io::Result<()> {
        if self.waiting {
            self.timer.wait()?;
            self.waiting = false;
        }
        Ok(())
    }
}

impl AsRawFd for Throttle {
    /// The timer.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

/// Both buckets and when they were last filled.
#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    filled: Instant,
}

impl Buckets {
    fn new(limits: Limits, now: Instant) -> Self {
        Self {
            bytes: limits.bytes_per_second.map(Bucket::full),
            operations: limits.operations_per_second.map(Bucket::full),
            filled: now,
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.bytes.iter_mut().chain(&mut self.operations)
    }

    /// How long until the next operation may begin; `None` if it may now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.each().filter_map(|bucket| bucket.fill(elapsed)).max()
    }

    fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

#[derive(Debug)]
struct Bucket {
    /// Tokens per second, which is units per nanosecond.
    rate: i128,
    /// In units; negative is debt.
    balance: i128,
}

impl Bucket {
    fn full(rate: NonZeroU64) -> Self {
        let rate = i128::from(rate.get());
        Self { rate, balance: earned(rate, BURST) }
    }

    /// Earns what `elapsed` is worth; how long the rest of a debt takes to pay.
    fn fill(&mut self, elapsed: Duration) -> Option<Duration> {
        let balance = self.balance.saturating_add(earned(self.rate, elapsed));
        self.balance = balance.min(earned(self.rate, BURST));
        if self.balance >= 0 {
            return None;
        }
        // Rounded up: at the end of the wait the debt is paid.
        let nanoseconds = (-self.balance + self.rate - 1) / self.rate;
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, tokens: u64) {
        let units = i128::from(tokens) * UNITS_PER_TOKEN;
        self.balance = self.balance.saturating_sub(units);
    }
}

/// What a bucket earns in some time, in units.
fn earned(rate: i128, time: Duration) -> i128 {
    rate.saturating_mul(i128::try_from(time.as_nanos()).unwrap_or(i128::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(bytes: u64, operations: u64) -> Limits {
        Limits {
            bytes_per_second: NonZeroU64::new(bytes),
            operations_per_second: NonZeroU64::new(operations),
        }
    }

    /// Runs operations of `size` bytes as fast as the buckets let them, for `time`, with a timer
    /// that is always `late`; how many went through.
    fn run(limits: Limits, size: u64, time: Duration, late: Duration) -> u64 {
        let start = Instant::now();
        let mut buckets = Buckets::new(limits, start);
        let mut now = start;
        let mut operations = 0;
        while now < start + time {
            match buckets.wait(now) {
                Some(wait) => now += wait + late,
                None => {
                    buckets.charge(size);
                    operations += 1;
                }
            }
        }
        operations
    }

    #[test]
    fn the_rate_is_exact_over_an_hour_even_with_a_late_timer() {
        // 7 and 3 divide no power of ten: every wait is rounded.
        let hour = Duration::from_secs(3600);
        let late = Duration::from_nanos(54_321);
        let burst = 7 * 4096 / 10;
        let bytes = 7 * 4096 * 3600;
        let done = run(limits(7 * 4096, 0), 999, hour, late) * 999;
        assert!((bytes..=bytes + burst + 2 * 999).contains(&done), "{done} of {bytes}");
        assert_eq!(run(limits(0, 3), 1 << 30, hour, late), 3 * 3600 + 1);
    }

    #[test]
    fn the_tighter_limit_rules() {
        let second = Duration::from_secs(10);
        let by_operations = run(limits(1 << 30, 100), 512, second, Duration::ZERO);
        assert!((1000..=1011).contains(&by_operations), "{by_operations}");
        let by_bytes = run(limits(51_200, 1_000_000), 512, second, Duration::ZERO);
        assert!((1000..=1011).contains(&by_bytes), "{by_bytes}");
    }

    #[test]
    fn an_operation_larger_than_a_second_of_tokens_is_paid_off() {
        let start = Instant::now();
        let mut buckets = Buckets::new(limits(1000, 0), start);
        assert_eq!(buckets.wait(start), None);
        buckets.charge(10_100);
        assert_eq!(buckets.wait(start), Some(Duration::from_secs(10)));
        assert_eq!(buckets.wait(start + Duration::from_secs(9)), Some(Duration::from_secs(1)));
        assert_eq!(buckets.wait(start + Duration::from_secs(10)), None);
    }

    #[test]
    fn idle_time_saves_no_more_than_the_burst() {
        let start = Instant::now();
        let mut buckets = Buckets::new(limits(0, 100), start);
        let later = start + Duration::from_secs(1 << 40);
        let burst = (0..).take_while(|_| {
            let free = buckets.wait(later).is_none();
            buckets.charge(0);
            free
        });
        assert_eq!(burst.count(), 11);
    }

    #[test]
    fn a_clock_that_goes_backwards_earns_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut buckets = Buckets::new(limits(1000, 0), start);
        buckets.charge(1100);
        assert!(buckets.wait(start - Duration::from_secs(50)).is_some());
        assert_eq!(buckets.wait(start), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_timer_fires_and_lets_go_on() {
        let limit = RateLimit::new(limits(0, 1000)).unwrap();
        let mut throttle = Throttle::new(Some(limit)).unwrap();
        for _ in 0..101 {
            throttle.charge(0);
        }
        assert!(!throttle.may_begin().unwrap());
        throttle.timer_fired().unwrap();
        assert!(throttle.may_begin().unwrap());
        assert!(RateLimit::new(Limits::default()).is_none());
        assert!(Throttle::new(None).unwrap().may_begin().unwrap());
    }

    proptest! {
        #[test]
        fn any_rate_and_any_size_end_in_a_finite_wait(
            rate in 1u64.., sizes in prop::collection::vec(any::<u32>(), 1..8), gap in any::<u64>(),
        ) {
            let start = Instant::now();
            let mut buckets = Buckets::new(limits(rate, rate), start);
            for size in sizes {
                buckets.charge(size.into());
            }
            let now = start + Duration::from_nanos(gap >> 8);
            if let Some(wait) = buckets.wait(now) {
                prop_assert!(wait > Duration::ZERO);
                prop_assert_eq!(buckets.wait(now + wait), None);
            }
        }
    }
}
