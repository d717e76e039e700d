//! Standard input, watched while the guest runs: what is typed goes to the guest or to the monitor.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};

use casemate_machine::{Control, Outcome, Outlet, Watcher};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;

use super::keys::{Key, Keys};
use super::monitor::Monitor;

/// Bytes that are typed, or pasted, and not yet taken by the guest; more are lost. A terminal is always
/// read, as escape keys have to work.
const BACKLOG: usize = 1 << 20;

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
    /// Nowhere: only escape keys have a meaning.
    Nowhere,
}

/// Hands what is typed, or comes through a pipe, to the guest; escape keys only on a terminal.
pub(super) struct Keyboard {
    source: File,
    sink: Sink,
    terminal: bool,
    keys: Keys,
    /// For the guest, which takes a few bytes at a time.
    backlog: VecDeque<u8>,
    /// Nothing more is read before the guest has taken the backlog.
    waits: bool,
    /// The console's pipe is full, and watched until it is not.
    pipe_awaited: bool,
    /// Bytes that were typed when the backlog was full.
    lost: usize,
    /// While the monitor is open.
    monitor: Option<Monitor>,
    /// To the terminal, beside the guest's own output.
    output: Outlet,
}

impl Keyboard {
    /// Keys come from `source`, which may be a terminal.
    pub(super) fn new(source: File, sink: Sink, terminal: bool, output: Outlet) -> Self {
        let (keys, backlog) = (Keys::default(), VecDeque::new());
        Self {
            source,
            sink,
            terminal,
            keys,
            backlog,
            waits: false,
            pipe_awaited: false,
            lost: 0,
            monitor: None,
            output,
        }
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
const PIPE: u32 = 2;

impl MutEventSubscriber for Typist {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Sink::Serial = self.keyboard.sink {
            let drained = self.control.serial().drained();
            if let Err(error) = ops.add(Events::with_data(drained, DRAINED, EventSet::IN)) {
                self.control.stop(Outcome::Failed(format!("no console input: {error}")));
            }
        }
        self.resume(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() != INPUT {
            if events.data() == DRAINED {
                // Only that it counted matters.
                let _ = self.control.serial().drained().read();
            }
            self.send(ops);
            if self.keyboard.waits && self.keyboard.backlog.is_empty() {
                self.resume(ops);
            }
            return;
        }
        match self.read(ops) {
            Ok(0) => self.pause(ops),
            Ok(_) if !self.keyboard.terminal && !self.keyboard.backlog.is_empty() => {
                self.keyboard.waits = true;
                self.pause(ops);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the guest's input cannot be read any more");
                self.pause(ops);
            }
        }
    }
}

impl Typist {
    fn events(&self) -> Events {
        Events::with_data(&self.keyboard.source, INPUT, EventSet::IN)
    }

    fn pause(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.remove(self.events()) {
            tracing::warn!(%error, "the guest's input cannot be left alone");
        }
    }

    /// Reads from now on whenever there is something.
    fn resume(&mut self, ops: &mut EventOps<'_>) {
        self.keyboard.waits = false;
        match ops.add(self.events()) {
            Ok(()) => {}
            // Files are always ready, and epoll refuses to wait for them.
            Err(event_manager::Error::Epoll(error))
                if error.errno() == Errno::PERM.raw_os_error() =>
            {
                self.keyboard.waits = matches!(self.read(ops), Ok(1..));
            }
            Err(error) => tracing::warn!(%error, "the guest's input cannot be watched"),
        }
    }

    /// Takes what there is; 0 at the end of the input.
    fn read(&mut self, ops: &mut EventOps<'_>) -> io::Result<usize> {
        let mut bytes = [0; 256];
        let count = match self.keyboard.source.read(&mut bytes) {
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) =>
            {
                return Ok(bytes.len());
            }
            outcome => outcome?,
        };
        for &byte in bytes.iter().take(count) {
            if self.keyboard.terminal {
                self.key(byte);
            } else {
                self.keyboard.backlog.push_back(byte);
            }
        }
        self.send(ops);
        Ok(count)
    }

    /// Hands the backlog to the guest, as far as it takes it.
    fn send(&mut self, ops: &mut EventOps<'_>) {
        let bytes = self.keyboard.backlog.make_contiguous();
        let sent = match &mut self.keyboard.sink {
            Sink::Serial => self.control.serial().send(bytes),
            // Full: the rest goes when the guest has read some.
            Sink::Console(pipe) => pipe.write(bytes).unwrap_or(0),
            Sink::Nowhere => bytes.len(),
        };
        self.keyboard.backlog.drain(..sent);
        if let Sink::Console(pipe) = &self.keyboard.sink {
            let wanted = !self.keyboard.backlog.is_empty();
            if wanted != self.keyboard.pipe_awaited {
                let events = Events::with_data(pipe, PIPE, EventSet::OUT);
                let result = if wanted { ops.add(events) } else { ops.remove(events) };
                self.keyboard.pipe_awaited = wanted;
                if let Err(error) = result {
                    tracing::warn!(%error, "the console's input cannot be watched");
                }
            }
        }
    }

    fn key(&mut self, byte: u8) {
        let keyboard = &mut self.keyboard;
        match (keyboard.keys.take(byte), &mut keyboard.monitor) {
            (None, _) => {}
            (Some(Key::Quit), _) => self.control.stop(Outcome::Stopped),
            (Some(Key::Help), _) => keyboard.output.say(HELP.as_bytes()),
            (Some(Key::Monitor), Some(_)) => {
                keyboard.monitor = None;
                keyboard.output.say(b"\n");
            }
            (Some(Key::Monitor), None) => {
                keyboard.monitor = Some(Monitor::open(keyboard.output.clone()));
            }
            (Some(Key::Byte(byte)), Some(monitor)) => monitor.key(byte, &self.control),
            (Some(Key::Byte(byte)), None) if keyboard.backlog.len() < BACKLOG => {
                keyboard.backlog.push_back(byte);
            }
            (Some(Key::Byte(_)), None) => {
                keyboard.lost += 1;
                tracing::warn!(lost = keyboard.lost, "the guest does not read: keys are lost");
            }
        }
    }
}
