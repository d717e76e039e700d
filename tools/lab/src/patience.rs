//! Limits that a busy machine does not shorten.
//!
//! A limit counts the time that a program had: its processor time, and the time in which it waited for
//! something else than a processor. On a quiet machine that is what the clock says. On one with twenty
//! others it is the same, and the clock says minutes more.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// How often the kernel is asked: it takes a file for each thread.
const EVERY: Duration = Duration::from_millis(250);

/// How much of a limit a process has used.
pub(crate) struct Patience {
    limit: Duration,
    start: Instant,
    asked: Instant,
    process: u32,
    threads: HashMap<String, Times>,
    /// Of threads that ended and whose number another one got.
    ended: Times,
    used: Duration,
}

/// A thread's nanoseconds on a processor, and those in which it could have run but another did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    ran: u64,
    waited: u64,
}

impl Patience {
    /// The limit begins now.
    pub(crate) fn new(process: u32, limit: Duration) -> Self {
        let start = Instant::now();
        Self {
            limit,
            start,
            asked: start,
            process,
            threads: HashMap::new(),
            ended: Times::default(),
            used: Duration::ZERO,
        }
    }

    /// Whether the limit is used up.
    pub(crate) fn is_over(&mut self) -> bool {
        if self.asked.elapsed() >= EVERY {
            self.asked = Instant::now();
            self.look();
            self.used = self.used.max(self.total().used(self.start.elapsed()));
        }
        self.used >= self.limit
    }

    /// Where the kernel does not tell, nothing was waited for, and the clock counts.
    fn look(&mut self) {
        let tasks = format!("/proc/{}/task", self.process);
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let Some(now) = Times::parse(&text) else { continue };
            let name = task.file_name().to_string_lossy().into_owned();
            let before = self.threads.insert(name, now).unwrap_or_default();
            if now.ran < before.ran || now.waited < before.waited {
                self.ended = self.ended.plus(before);
            }
        }
    }

    fn total(&self) -> Times {
        self.threads.values().fold(self.ended, |sum, times| sum.plus(*times))
    }
}

impl Times {
    /// Linux Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat".
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace().map(|field| field.parse().ok());
        Some(Self { ran: fields.next()??, waited: fields.next()?? })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            ran: self.ran.saturating_add(other.ran),
            waited: self.waited.saturating_add(other.waited),
        }
    }

    /// What counts of `clock`. Several threads that wait at once must not make it less than what they ran.
    fn used(self, clock: Duration) -> Duration {
        let ran = Duration::from_nanos(self.ran).min(clock);
        clock.saturating_sub(Duration::from_nanos(self.waited)).max(ran)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn times(ran: u64, waited: u64) -> Times {
        Times { ran: ran * 1_000_000_000, waited: waited * 1_000_000_000 }
    }

    #[test]
    fn waiting_for_a_processor_does_not_count() {
        let used =
            |ran, waited, clock| times(ran, waited).used(Duration::from_secs(clock)).as_secs();
        // Alone, busy or idle; one of twenty; four threads that wait at once, and a hang among them.
        assert_eq!(used(100, 0, 100), 100);
        assert_eq!(used(0, 0, 100), 100);
        assert_eq!(used(5, 95, 100), 5);
        assert_eq!(used(20, 300, 100), 20);
        assert_eq!(used(400, 0, 100), 100);
    }

    #[test]
    fn the_kernel_says_how_long_a_thread_ran_and_waited() {
        assert_eq!(Times::parse("2000000000 1000000000 5\n"), Some(times(2, 1)));
        assert_eq!(Times::parse("0"), None);
        assert!(Times::parse(&fs::read_to_string("/proc/self/schedstat").unwrap()).is_some());
    }

    /// A sleeping process uses its limit; a process that another keeps from running does not.
    #[test]
    fn a_process_that_sleeps_is_ended_and_threads_that_end_are_counted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut patience = Patience::new(child.id(), Duration::from_millis(300));
        while !patience.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        patience.threads.insert("1".into(), times(7, 3));
        assert!(patience.total().ran >= times(7, 3).ran);
    }
}
