//! Signals that end the guest, and the terminal's raw mode with it.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;

use casemate_vmm::{Control, Outcome, Watcher};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;

/// Ends the guest when this process is asked to end.
pub(super) fn watcher(control: Control) -> io::Result<Watcher> {
    let (received, sender) = UnixStream::pair()?;
    received.set_nonblocking(true)?;
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(Box::new(Signals { received, control }))
}

struct Signals {
    received: UnixStream,
    control: Control,
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.received, EventSet::IN)) {
            self.control.stop(Outcome::Failed(format!("signals cannot be watched: {error}")));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let mut byte = [0];
        if self.received.read(&mut byte).is_ok() {
            self.control.stop(Outcome::Stopped);
        }
    }
}
