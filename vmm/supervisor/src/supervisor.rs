//! The parent of the process that holds the guest. It has neither guest nor /dev/kvm, and no thread but
//! one.
//!
//! It takes the signals, presses the power button through the [link], speaks to the service
//! manager, and starts a new child after a reset.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use casemate_sandbox::{Child, End, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::error::SupervisorError;
use crate::link::{self, Command, Event, ToChild, ToParent};
use crate::notify::{Notifier, watchdog_interval};
use crate::restarts::Restarts;
use crate::terminal::Terminal;

/// Time after which the power button is pressed again: a guest that still boots misses the first time.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

/// Time that the child may take to end once it was told to, before it is killed: longer than it waits for
/// vCPUs, devices and whoever reads its output.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the last run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The child reported its end, and this status tells it.
    Status(u8),
    /// The child was killed by this signal, and reported nothing.
    Killed(i32),
    /// It was to end between two guests.
    Stopped,
}

/// The parent's state.
pub struct Supervisor {
    signals: Signals,
    notifier: Notifier,
    watchdog: Option<Watchdog>,
    /// Time that a guest may take to power off.
    stop_timeout: Duration,
    restarts: Restarts,
    stop: Stop,
    terminal: Terminal,
}

/// How far the end is that a signal asked for.
enum Stop {
    /// No signal came.
    No,
    /// The guest is to power off.
    PowerOff { until: Instant, press: Instant },
    /// The child is to end.
    Now { kill: Instant },
}

/// A child, and what is known of it.
struct Run {
    child: Child,
    link: ToChild,
    /// It has closed its end of the link.
    is_silent: bool,
    phase: Phase,
    /// The pause before the restart that the child was promised.
    restart: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Launching,
    /// The child's event loop runs.
    Running,
    Ended,
}

impl Supervisor {
    /// From now on signals do not end this process. A guest may take `stop_timeout` to power off.
    ///
    /// # Errors
    /// Signals cannot be watched, or the environment names a service manager that does not exist.
    pub fn new(stop_timeout: Duration) -> Result<Self, SupervisorError> {
        let signals = Signals::block(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM])
            .map_err(SupervisorError::Signals)?;
        Ok(Self {
            signals,
            notifier: Notifier::of_environment()?,
            watchdog: watchdog_interval()?.map(Watchdog::new),
            stop_timeout,
            restarts: Restarts::default(),
            stop: Stop::No,
            terminal: Terminal::now(),
        })
    }

    /// Runs `life` in a child, again for as long as it asks for that. Its value becomes the exit status of
    /// the child. The process must have one thread.
    ///
    /// # Errors
    /// No child starts, or it cannot be waited for.
    pub fn supervise(mut self, life: impl Fn(ToParent) -> u8) -> Result<Verdict, SupervisorError> {
        loop {
            let (link, theirs) = link::pair().map_err(SupervisorError::Link)?;
            let mut link = Some(link);
            let child = Child::spawn(|| {
                // In the child: or it would not see the parent's end go.
                drop(link.take());
                life(theirs)
            })?;
            let Some(link) = link else { return Err(SupervisorError::NoLink) };
            let mut run =
                Run { child, link, is_silent: false, phase: Phase::Launching, restart: None };
            let end = self.watch(&mut run);
            self.terminal.restore();
            let end = end?;
            match (end, run.restart) {
                (End::Killed(signal), _) => return Ok(Verdict::Killed(signal)),
                (End::Status(status), None) => return Ok(Verdict::Status(status)),
                (End::Status(_), Some(pause)) => {
                    self.pause(pause)?;
                    if !matches!(self.stop, Stop::No) {
                        return Ok(Verdict::Stopped);
                    }
                }
            }
        }
    }

    /// Watches a child to its end.
    fn watch(&mut self, run: &mut Run) -> Result<End, SupervisorError> {
        loop {
            let now = Instant::now();
            self.stop_in_time(run, now);
            let due = [self.stop.due(), self.feed_watchdog(Some(run), now)];
            let mut files = vec![readable(&run.child), readable(&self.signals)];
            if !run.is_silent {
                files.push(readable(&run.link));
            }
            wait(&mut files, due.into_iter().flatten().min())?;
            let ended = files.first().is_some_and(|child| !child.revents().is_empty());
            match run.link.events() {
                Some(events) => events.into_iter().for_each(|event| self.take(event, run)),
                None => run.is_silent = true,
            }
            while let Some(signal) = self.signals.next() {
                self.signalled(signal, run);
            }
            if ended {
                return run.child.wait().map_err(SupervisorError::Wait);
            }
        }
    }

    /// Waits between two guests, until a signal asks for the end.
    fn pause(&mut self, pause: Duration) -> Result<(), SupervisorError> {
        let until = Instant::now() + pause;
        loop {
            let now = Instant::now();
            if self.signals.next().is_some() {
                self.stop = Stop::Now { kill: now };
                return Ok(());
            }
            if now >= until {
                return Ok(());
            }
            let due = self.feed_watchdog(None, now).map_or(until, |due| due.min(until));
            wait(&mut [readable(&self.signals)], Some(due))?;
        }
    }

    fn take(&mut self, event: Event, run: &mut Run) {
        match (event, run.phase) {
            (Event::Launched, Phase::Launching) => {
                run.phase = Phase::Running;
                self.notifier.ready();
            }
            (Event::Alive, _) => {
                if let Some(watchdog) = &mut self.watchdog {
                    watchdog.answered = true;
                }
            }
            (Event::Ended, _) => run.phase = Phase::Ended,
            (Event::Restart, Phase::Ended) if run.restart.is_none() => {
                if !matches!(self.stop, Stop::No) {
                    return run.link.send(Command::Stop);
                }
                run.restart = self.restarts.next(Instant::now());
                let answer = run.restart.map_or(Command::NoRestart, |_| Command::Restart);
                run.link.send(answer);
                if run.restart.is_some() {
                    self.notifier.status("The guest starts anew");
                }
            }
            // Nothing that a child of this program says.
            (Event::Launched | Event::Restart, _) => {}
        }
    }

    /// SIGTERM lets the guest power off. A second signal, and any other one, ends it at once.
    fn signalled(&mut self, signal: i32, run: &Run) {
        let now = Instant::now();
        let gently = signal == SIGTERM && !self.stop_timeout.is_zero();
        match self.stop {
            Stop::No if gently && run.phase == Phase::Running => {
                let status = "The guest was asked to power off";
                self.notifier.stopping(status, self.stop_timeout + PATIENCE);
                run.link.send(Command::PowerButton);
                self.stop =
                    Stop::PowerOff { until: now + self.stop_timeout, press: now + PRESS_AGAIN };
            }
            Stop::No | Stop::PowerOff { .. } => self.end(run, Command::Stop, now),
            Stop::Now { .. } => {}
        }
    }

    fn end(&mut self, run: &Run, command: Command, now: Instant) {
        self.notifier.stopping("The guest is ended", PATIENCE);
        run.link.send(command);
        self.stop = Stop::Now { kill: now + PATIENCE };
    }

    /// Does what is due of a stop.
    fn stop_in_time(&mut self, run: &Run, now: Instant) {
        match &mut self.stop {
            Stop::PowerOff { until, .. } if now >= *until => self.end(run, Command::TimeOut, now),
            Stop::PowerOff { press, .. } if now >= *press => {
                *press = now + PRESS_AGAIN;
                run.link.send(Command::PowerButton);
            }
            Stop::Now { kill } if now >= *kill => {
                *kill = now + PATIENCE;
                run.child.kill();
            }
            Stop::No | Stop::PowerOff { .. } | Stop::Now { .. } => {}
        }
    }

    /// Tells the service manager that the run is alive, if it is; returns when to look again.
    fn feed_watchdog(&mut self, run: Option<&Run>, now: Instant) -> Option<Instant> {
        let watchdog = self.watchdog.as_mut()?;
        if now < watchdog.next {
            return Some(watchdog.next);
        }
        watchdog.next = now + watchdog.interval;
        match run.filter(|run| run.phase == Phase::Running) {
            // A launch, and the end of a run, have limits of their own.
            None => self.notifier.alive(),
            Some(run) => {
                if std::mem::take(&mut watchdog.answered) {
                    self.notifier.alive();
                }
                run.link.send(Command::Ping);
            }
        }
        Some(watchdog.next)
    }
}

impl Stop {
    /// When something is due.
    fn due(&self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::PowerOff { until, press } => Some(*until.min(press)),
            Self::Now { kill } => Some(*kill),
        }
    }
}

/// Signs of life that the service manager waits for.
struct Watchdog {
    interval: Duration,
    next: Instant,
    /// The child's event loop has answered since the last sign of life.
    answered: bool,
}

impl Watchdog {
    fn new(interval: Duration) -> Self {
        Self { interval, next: Instant::now(), answered: true }
    }
}

fn readable(file: &impl AsFd) -> PollFd<'_> {
    PollFd::new(file, PollFlags::IN)
}

/// Waits until one of `files` is ready, or until `due`.
fn wait(files: &mut [PollFd<'_>], due: Option<Instant>) -> Result<(), SupervisorError> {
    let left = due.map(|due| due.saturating_duration_since(Instant::now()));
    // A time that no clock reaches is none.
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(files, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(SupervisorError::Wait(error.into())),
    }
}
