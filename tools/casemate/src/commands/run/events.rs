//! Commands of the parent, and changes of the terminal's size, watched while the guest runs.

use std::io;

use casemate_machine::{Control, Outcome, Watcher};
use casemate_sandbox::Signals;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::termios::tcgetwinsize;
use signal_hook::consts::SIGWINCH;

use casemate_supervisor::{Command, Event, ToParent};

/// Obeys `parent` in the guest behind `control`, and tells it that the event loop runs; with a console it
/// also tells the guest the terminal's size.
pub(super) fn watcher(parent: &ToParent, control: Control) -> io::Result<Watcher> {
    let resized = control.console().map(|_| Signals::block(&[SIGWINCH])).transpose()?;
    Ok(Box::new(ParentWatcher { parent: parent.try_clone()?, resized, control }))
}

struct ParentWatcher {
    parent: ToParent,
    resized: Option<Signals>,
    control: Control,
}

const COMMAND: u32 = 0;
const RESIZED: u32 = 1;

impl MutEventSubscriber for ParentWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let watched = ops.add(Events::with_data(&self.parent, COMMAND, EventSet::IN));
        let resized = self
            .resized
            .as_ref()
            .map_or(Ok(()), |resized| ops.add(Events::with_data(resized, RESIZED, EventSet::IN)));
        if let Err(error) = watched.and(resized) {
            let failed = format!("commands of the parent cannot be watched: {error}");
            self.control.stop(Outcome::Failed(failed));
        }
        self.resize();
        self.parent.send(Event::Launched);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == RESIZED {
            if let Some(resized) = &self.resized {
                while resized.next().is_some() {}
            }
            return self.resize();
        }
        let Some(commands) = self.parent.commands() else {
            return self.control.stop(Outcome::Failed("the parent process has ended".into()));
        };
        for command in commands {
            self.obey(command);
        }
    }
}

impl ParentWatcher {
    fn obey(&self, command: Command) {
        match command {
            Command::PowerButton => {
                if let Err(error) = self.control.press_power_button() {
                    tracing::warn!(%error, "KVM took no interrupt of the power button");
                }
            }
            Command::Stop => self.control.stop(Outcome::Stopped),
            Command::TimeOut => self.control.stop(Outcome::TimedOut),
            Command::Ping => self.parent.send(Event::Alive),
            // Answers to a question that comes later.
            Command::Restart | Command::NoRestart => {}
        }
    }

    fn resize(&self) {
        if let (Some(console), Ok(size)) = (self.control.console(), tcgetwinsize(io::stdout())) {
            console.resize(size.ws_col, size.ws_row);
        }
    }
}
