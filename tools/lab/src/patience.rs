//! Limits that a busy machine does not shorten.
//!
//! A limit counts the processor time of a process and its descendants, and the time in which all of them sleep. Time
//! in which one of them waits for a processor, or is stopped, does not count. On a quiet machine the limit is what the clock
//! shows; on a machine that runs twenty other programs the limit is the same, and the clock shows minutes more.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two readings of `/proc`: each reads two files of each thread.
const EVERY: Duration = Duration::from_millis(250);
/// What a sleep between two readings counts at most. Readings are further apart only if this process itself had to
/// wait or was stopped, and nobody knows what the other process did meanwhile.
const LATE: Duration = Duration::from_secs(1);

/// How much of a limit a process has used.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    process: u32,
    read: Instant,
    /// By `/proc/PROCESS/task/THREAD`.
    threads: HashMap<String, Times>,
    used: Duration,
}

/// A thread's nanoseconds on a processor, and those in which it could have run but another did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    ran: u64,
    waited: u64,
}

/// What happened between two readings.
#[derive(Clone, Copy, Debug, Default)]
struct Interval {
    times: Times,
    /// A thread could run, or is stopped, at the end of it. A thread that still waits has not been charged for that yet.
    held: bool,
}

impl Patience {
    /// Starts the limit of `process` and its descendants.
    #[must_use]
    pub fn new(process: u32, limit: Duration) -> Self {
        let mut patience = Self {
            limit,
            process,
            read: Instant::now(),
            threads: HashMap::new(),
            used: Duration::ZERO,
        };
        // Its time until now is not part of the limit.
        patience.interval();
        patience
    }

    /// Whether the limit is used up.
    pub fn is_over(&mut self) -> bool {
        let clock = self.read.elapsed();
        if clock >= EVERY {
            self.read = Instant::now();
            let interval = self.interval();
            self.used += interval.used(clock);
        }
        self.used >= self.limit
    }

    /// Where the kernel has no such files, nothing is known to wait, and the clock counts.
    fn interval(&mut self) -> Interval {
        let mut interval = Interval::default();
        let mut threads = HashMap::with_capacity(self.threads.len());
        let mut processes = vec![self.process];
        while let Some(process) = processes.pop() {
            let tasks = format!("/proc/{process}/task");
            for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
                let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
                interval.held |= is_held(&read("stat"));
                if let Some(now) = Times::parse(&read("schedstat")) {
                    let name = name(&task.path());
                    let before = self.threads.get(&name).copied().unwrap_or_default();
                    interval.times = interval.times.plus(now.since(before));
                    threads.insert(name, now);
                }
                let children = read("children");
                processes
                    .extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
            }
        }
        self.threads = threads;
        interval
    }
}

fn name(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Whether a thread could run or is stopped (proc(5), `/proc/pid/stat`, the third field).
fn is_held(stat: &str) -> bool {
    // A program's name may have parentheses itself.
    let state = stat.rsplit_once(')').and_then(|(_, fields)| fields.trim_start().chars().next());
    matches!(state, Some('R' | 'T' | 't'))
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

    /// A smaller number is that of a new thread with the number of an old one.
    fn since(self, before: Self) -> Self {
        match (self.ran.checked_sub(before.ran), self.waited.checked_sub(before.waited)) {
            (Some(ran), Some(waited)) => Self { ran, waited },
            _ => self,
        }
    }
}

impl Interval {
    /// What counts of an interval of the clock.
    fn used(self, clock: Duration) -> Duration {
        let ran = Duration::from_nanos(self.times.ran).min(clock);
        if self.held {
            return ran;
        }
        clock.min(LATE).saturating_sub(Duration::from_nanos(self.times.waited)).max(ran)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::thread;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(600);

    const fn times(ran: u64, waited: u64) -> Times {
        Times { ran: ran * 1_000_000, waited: waited * 1_000_000 }
    }

    /// A child that ends with its test.
    struct Running(Child);

    impl Running {
        fn start(program: &str, arguments: &[&str]) -> Self {
            Self(Command::new(program).args(arguments).spawn().unwrap())
        }

        fn signal(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.0), signal).unwrap();
        }

        fn patience(&self) -> Patience {
            Patience::new(self.0.id(), LIMIT)
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Asks for so long whether the limit is over.
    fn is_over_within(patience: &mut Patience, time: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < time {
            if patience.is_over() {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    #[test]
    fn interval_counts_work_and_sleep_but_not_waiting() {
        let used = |held, ran, waited, clock| {
            let interval = Interval { times: times(ran, waited), held };
            interval.used(Duration::from_millis(clock)).as_millis()
        };
        // Alone: busy, or asleep.
        assert_eq!(used(true, 250, 0, 250), 250);
        assert_eq!(used(false, 0, 0, 250), 250);
        // One of twenty; a thread that has not run at all; a wait that began before the interval.
        assert_eq!(used(true, 12, 238, 250), 12);
        assert_eq!(used(true, 0, 0, 250), 0);
        assert_eq!(used(false, 5, 3000, 250), 5);
        // Many threads count as one; a reading that is late by an hour.
        assert_eq!(used(true, 1000, 0, 250), 250);
        assert_eq!(used(false, 0, 0, 3_600_000), 1000);
        assert_eq!(used(false, 5000, 0, 3_600_000), 5000);
    }

    #[test]
    fn thread_times_and_states_are_read_from_proc() {
        assert_eq!(Times::parse("2000000 1000000 5\n"), Some(times(2, 1)));
        assert_eq!(Times::parse("0"), None);
        assert!(Times::parse(&fs::read_to_string("/proc/self/schedstat").unwrap()).is_some());
        assert_eq!(times(5, 3).since(times(2, 1)), times(3, 2));
        assert_eq!(times(1, 0).since(times(2, 1)), times(1, 0));
        assert!(is_held("7 (a) S) R 1 7") && is_held("7 (a) T 1") && !is_held("7 (R) S 1"));
        assert!(!is_held(""));
    }

    #[test]
    fn sleeping_process_uses_its_limit() {
        let mut patience = Running::start("sleep", &["600"]).patience();
        while !patience.is_over() {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whatever the clock shows: it goes on later, and uses its limit then.
    #[test]
    fn stopped_process_uses_no_limit() {
        let busy = Running::start("sh", &["-c", "while :; do :; done"]);
        busy.signal(Signal::STOP);
        let mut patience = busy.patience();
        assert!(!is_over_within(&mut patience, 3 * LIMIT));
        busy.signal(Signal::CONT);
        while !patience.is_over() {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// One processor for a process of the idle class and a busy one: the first gets hardly anything. Its parent only
    /// sleeps.
    #[test]
    fn starved_process_uses_no_limit() {
        let endless = "while :; do :; done";
        let _busy = Running::start("taskset", &["-c", "0", "sh", "-c", endless]);
        let child = "setpriv --pdeathsig KILL chrt --idle 0 sh -c";
        let script = format!("{child} '{endless}' & wait");
        let starved = Running::start("taskset", &["-c", "0", "sh", "-c", &script]);
        let mut patience = starved.patience();
        assert!(!is_over_within(&mut patience, 5 * LIMIT), "{patience:?}");
    }
}
