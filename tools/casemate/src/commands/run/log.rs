//! The log of `casemate run`: lines that never hold their writer, and a limit for each place.
//!
//! A guest decides how often most places of the VMM log. Each may write [`BURST`] lines, and then one a
//! [`PERIOD`]; the rest is counted, and the next line of that place is preceded by the count.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use casemate_machine::Outlet;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

/// Lines that a place may write at once.
pub(super) const BURST: u32 = 20;
/// Time after which it may write another one.
const PERIOD: Duration = Duration::from_secs(1);

/// Target of the limiter's own lines.
const OWN: &str = "casemate::log";

/// Starts the log. It goes to `errors`.
pub(super) fn start(filter: Option<&str>, json: bool, errors: &Outlet) -> anyhow::Result<Limiter> {
    let default = || std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let text = filter.map(str::to_owned).or_else(default).unwrap_or_else(|| "warn".into());
    let filter: Targets = text.parse().with_context(|| {
        format!("\"{text}\" is no log filter; try info, or casemate_machine=debug")
    })?;
    let errors = errors.clone();
    let layer = fmt::layer().with_writer(move || Lines(errors.clone()));
    let layer = layer.with_ansi(io::stderr().is_terminal());
    let layer = if json { layer.json().boxed() } else { layer.boxed() };
    let limiter = Limiter::default();
    Registry::default().with(layer).with(limiter.clone()).with(filter).init();
    Ok(limiter)
}

/// Writes each line as a whole, or not at all.
struct Lines(Outlet);

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.say(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts the lines of each place.
#[derive(Clone, Default)]
pub(super) struct Limiter(Arc<Mutex<HashMap<Identifier, Place>>>);

struct Place {
    metadata: &'static Metadata<'static>,
    /// Lines that it may write now.
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

/// Whether a line is written.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is, after so many that were not.
    Written {
        suppressed: u64,
    },
    Suppressed,
}

impl Place {
    fn new(metadata: &'static Metadata<'static>, now: Instant) -> Self {
        Self { metadata, left: BURST, refilled: now, suppressed: 0 }
    }

    fn judge(&mut self, now: Instant) -> Verdict {
        let periods = now.saturating_duration_since(self.refilled).as_secs() / PERIOD.as_secs();
        if let Ok(periods @ 1..) = u32::try_from(periods) {
            self.left = self.left.saturating_add(periods).min(BURST);
            self.refilled += PERIOD * periods;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Verdict::Written { suppressed: std::mem::take(&mut self.suppressed) }
            }
            None => {
                self.suppressed += 1;
                Verdict::Suppressed
            }
        }
    }
}

impl Limiter {
    fn judge(&self, metadata: &'static Metadata<'static>) -> Verdict {
        let now = Instant::now();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match places.entry(metadata.callsite()) {
            Entry::Occupied(place) => place.into_mut().judge(now),
            Entry::Vacant(place) => place.insert(Place::new(metadata, now)).judge(now),
        }
    }

    /// Logs what is suppressed and not yet told.
    pub(super) fn finish(&self) {
        let mut untold = Vec::new();
        for place in self.0.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            let suppressed = std::mem::take(&mut place.suppressed);
            if suppressed > 0 {
                untold.push((place.metadata, suppressed));
            }
        }
        for (metadata, suppressed) in untold {
            tell(metadata, suppressed);
        }
    }
}

fn tell(metadata: &Metadata<'_>, suppressed: u64) {
    let (file, line) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
    tracing::warn!(target: OWN, suppressed, "more lines of {file}:{line} were suppressed");
}

impl<S: Subscriber> Layer<S> for Limiter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for the levels below wants to see everything.
        if *metadata.level() > Level::INFO || metadata.target() == OWN {
            return true;
        }
        match self.judge(metadata) {
            Verdict::Suppressed => false,
            Verdict::Written { suppressed: 0 } => true,
            Verdict::Written { suppressed } => {
                tell(metadata, suppressed);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::callsite::Callsite;
    use tracing::field::FieldSet;
    use tracing::metadata::Kind;
    use tracing::subscriber::Interest;

    use super::*;

    #[test]
    fn place_writes_a_burst_then_one_line_a_second_with_the_count() {
        let start = Instant::now();
        let mut place = Place::new(&METADATA, start);
        for _ in 0..BURST {
            assert_eq!(place.judge(start), Verdict::Written { suppressed: 0 });
        }
        for _ in 0..1000 {
            assert_eq!(place.judge(start), Verdict::Suppressed);
        }
        let later = start + PERIOD;
        assert_eq!(place.judge(later), Verdict::Written { suppressed: 1000 });
        assert_eq!(place.judge(later), Verdict::Suppressed);
        let much_later = start + PERIOD * 1000;
        assert_eq!(place.judge(much_later), Verdict::Written { suppressed: 1 });
    }

    struct Nowhere;

    impl Callsite for Nowhere {
        fn set_interest(&self, _: Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            &METADATA
        }
    }

    static METADATA: Metadata<'static> = Metadata::new(
        "event",
        "here",
        Level::WARN,
        None,
        None,
        None,
        FieldSet::new(&[], Identifier(&Nowhere)),
        Kind::EVENT,
    );
}
