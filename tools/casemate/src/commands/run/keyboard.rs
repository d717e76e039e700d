//! Standard input, watched while the guest runs: what is typed goes to the guest or to the monitor.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;

use casemate_machine::{Control, Outcome, Watcher};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;

use super::keys::{Key, Keys};
use super::monitor::Monitor;
use super::terminal::say;

/// What is typed and not yet taken by the guest; more is lost.
const BACKLOG: usize = 4096;

const HELP: &str = "
Ctrl-A x       end the guest
Ctrl-A c       open or close the monitor
Ctrl-A h       this help
Ctrl-A Ctrl-A  Ctrl-A itself
";

/// Where the guest reads.
pub(super) enum Sink {
    /// At its serial port.
    Serial,
    /// At its virtio console, behind this pipe.
    Console(File),
}

/// Hands what is typed, or comes through a pipe, to the guest; escape keys only on a terminal.
pub(super) struct Keyboard {
    sink: Sink,
    terminal: bool,
    keys: Keys,
    /// For the guest, which takes a few bytes at a time.
    backlog: VecDeque<u8>,
    /// Nothing more is read before the guest has taken the backlog.
    waits: bool,
    /// While the monitor is open.
    monitor: Option<Monitor>,
}

impl Keyboard {
    pub(super) fn new(sink: Sink, terminal: bool) -> Self {
        let (keys, backlog) = (Keys::default(), VecDeque::new());
        Self { sink, terminal, keys, backlog, waits: false, monitor: None }
    }

    /// Types into the guest behind `control`.
    pub(super) fn watcher(self, control: Control) -> Watcher {
        Box::new(Typist { keyboard: self, control })
    }
}

struct Typist {
    keyboard: Keyboard,
    control: Control,
}

const INPUT: u32 = 0;
const DRAINED: u32 = 1;

impl MutEventSubscriber for Typist {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let drained = self.control.serial().drained().as_raw_fd();
        if let Err(error) = ops.add(Events::with_data_raw(drained, DRAINED, EventSet::IN)) {
            self.control.stop(Outcome::Failed(format!("no console input: {error}")));
        }
        self.resume(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == DRAINED {
            // Only that it counted matters.
            let _ = self.control.serial().drained().read();
            self.send();
            if self.keyboard.waits && self.keyboard.backlog.is_empty() {
                self.resume(ops);
            }
            return;
        }
        match self.read() {
            Ok(0) => pause(ops),
            Ok(_) if !self.keyboard.terminal && !self.keyboard.backlog.is_empty() => {
                self.keyboard.waits = true;
                pause(ops);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "standard input cannot be read any more");
                pause(ops);
            }
        }
    }
}

fn input_events() -> Events {
    Events::with_data_raw(io::stdin().as_raw_fd(), INPUT, EventSet::IN)
}

fn pause(ops: &mut EventOps<'_>) {
    if let Err(error) = ops.remove(input_events()) {
        tracing::warn!(%error, "standard input cannot be left alone");
    }
}

impl Typist {
    /// Reads from now on whenever there is something.
    fn resume(&mut self, ops: &mut EventOps<'_>) {
        self.keyboard.waits = false;
        match ops.add(input_events()) {
            Ok(()) => {}
            // Files are always ready, and epoll refuses to wait for them.
            Err(event_manager::Error::Epoll(error))
                if error.errno() == Errno::PERM.raw_os_error() =>
            {
                self.keyboard.waits = matches!(self.read(), Ok(1..));
            }
            Err(error) => tracing::warn!(%error, "standard input cannot be watched"),
        }
    }

    /// Takes what there is; 0 at the end of the input.
    fn read(&mut self) -> Result<usize, Errno> {
        let mut bytes = [0; 256];
        let count = match rustix::io::read(io::stdin(), &mut bytes) {
            Err(Errno::INTR | Errno::AGAIN) => return Ok(bytes.len()),
            outcome => outcome?,
        };
        for &byte in bytes.iter().take(count) {
            if self.keyboard.terminal {
                self.key(byte);
            } else {
                self.keyboard.backlog.push_back(byte);
            }
        }
        self.send();
        Ok(count)
    }

    fn send(&mut self) {
        let bytes = self.keyboard.backlog.make_contiguous();
        let sent = match &mut self.keyboard.sink {
            Sink::Serial => self.control.serial().send(bytes),
            // Full: the rest goes with the next key.
            Sink::Console(pipe) => pipe.write(bytes).unwrap_or(0),
        };
        self.keyboard.backlog.drain(..sent);
    }

    fn key(&mut self, byte: u8) {
        let keyboard = &mut self.keyboard;
        match (keyboard.keys.take(byte), &mut keyboard.monitor) {
            (None, _) => {}
            (Some(Key::Quit), _) => self.control.stop(Outcome::Stopped),
            (Some(Key::Help), _) => say(HELP),
            (Some(Key::Monitor), Some(_)) => {
                keyboard.monitor = None;
                say("\n");
            }
            (Some(Key::Monitor), None) => keyboard.monitor = Some(Monitor::open()),
            (Some(Key::Byte(byte)), Some(monitor)) => monitor.key(byte, &self.control),
            (Some(Key::Byte(byte)), None) if keyboard.backlog.len() < BACKLOG => {
                keyboard.backlog.push_back(byte);
            }
            (Some(Key::Byte(_)), None) => {}
        }
    }
}
