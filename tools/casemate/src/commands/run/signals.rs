//! Signals: those that end the guest, and the terminal's raw mode with it; and the terminal's size.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;

use casemate_machine::{Control, Outcome, Watcher};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::termios::tcgetwinsize;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::low_level::{pipe, unregister};

/// The signals that reach this process from now on. They stay registered from one guest to the next:
/// what arrives while none runs is kept for the one that does.
pub(super) struct Signals {
    ending: UnixStream,
    /// If anybody wants to know.
    resized: Option<UnixStream>,
    registered: Vec<SigId>,
}

impl Signals {
    /// Those that ask this process to end; with `console` also changes of the terminal's size.
    pub(super) fn register(console: bool) -> io::Result<Self> {
        let (ending, sender) = pipe_pair()?;
        let mut signals = Self { ending, resized: None, registered: Vec::new() };
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            signals.registered.push(pipe::register(signal, sender.try_clone()?)?);
        }
        if console {
            let (resized, sender) = pipe_pair()?;
            signals.registered.push(pipe::register(SIGWINCH, sender)?);
            signals.resized = Some(resized);
        }
        Ok(signals)
    }

    /// Ends the guest behind `control` when this process is asked to end, or was since the last
    /// watcher, and tells it of the terminal's size.
    pub(super) fn watcher(&self, control: Control) -> io::Result<Watcher> {
        let ending = self.ending.try_clone()?;
        let resized = self.resized.as_ref().map(UnixStream::try_clone).transpose()?;
        Ok(Box::new(SignalWatcher { ending, resized, control }))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in &self.registered {
            unregister(*id);
        }
    }
}

fn pipe_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    Ok((receiver, sender))
}

struct SignalWatcher {
    ending: UnixStream,
    resized: Option<UnixStream>,
    control: Control,
}

const ENDING: u32 = 0;
const RESIZED: u32 = 1;

impl MutEventSubscriber for SignalWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let ending = Some((&self.ending, ENDING));
        let resized = self.resized.as_ref().map(|stream| (stream, RESIZED));
        for (stream, data) in ending.into_iter().chain(resized) {
            if let Err(error) = ops.add(Events::with_data(stream, data, EventSet::IN)) {
                self.control.stop(Outcome::Failed(format!("signals cannot be watched: {error}")));
            }
        }
        self.resize();
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match (events.data(), &self.resized) {
            (RESIZED, Some(resized)) if told(resized) => self.resize(),
            // Not read: if the guest has ended by itself just now, the next one is to hear of it.
            (ENDING, _) => self.control.stop(Outcome::Stopped),
            _ => {}
        }
    }
}

/// Whether there was something to read.
fn told(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Ok(1..))
}

impl SignalWatcher {
    fn resize(&self) {
        if let (Some(console), Ok(size)) = (self.control.console(), tcgetwinsize(io::stdout())) {
            console.resize(size.ws_col, size.ws_row);
        }
    }
}
