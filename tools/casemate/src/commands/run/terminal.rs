//! The terminal: raw mode, and where its keys go.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use casemate_vmm::{Control, Outcome, Watcher};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

use super::keys::{Key, Keys};

/// What is typed and not yet taken by the guest; more is lost.
const BACKLOG: usize = 4096;

const HELP: &str = "
Ctrl-A x       end the guest
Ctrl-A c       open or close the monitor
Ctrl-A h       this help
Ctrl-A Ctrl-A  Ctrl-A itself
";

const MONITOR_HELP: &str = "\
status        what the guest does
power-button  press its power button
reset         end the run as a reset would
quit          end the guest
Ctrl-A c      back to the guest
";

/// The terminal as it was before. Ways out that run no destructor restore it from here as well.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// While it lives, keys reach the guest as they are typed.
pub(super) struct RawMode;

impl RawMode {
    /// `None` if standard input is no terminal.
    pub(super) fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("could not read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        // What we say ourselves has no carriage returns.
        raw.output_modes |= OutputModes::OPOST;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        tcsetattr(&stdin, OptionalActions::Now, &raw)
            .context("could not set the terminal to raw mode")?;
        Ok(Some(Self))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // A panic may have come while the lock was held; then there is nothing to restore yet.
    let Ok(mut before) = BEFORE.try_lock() else { return };
    if let Some(before) = before.take() {
        // If it fails, the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Standard output without the buffer that would hold back a prompt.
pub(super) fn output() -> io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
}

/// Hands what is typed, or comes through a pipe, to the guest; escape keys only on a terminal.
pub(super) fn watcher(control: Control, terminal: bool) -> Watcher {
    Box::new(Keyboard {
        control,
        terminal,
        keys: Keys::default(),
        backlog: VecDeque::new(),
        waits: false,
        monitor: None,
    })
}

struct Keyboard {
    control: Control,
    terminal: bool,
    keys: Keys,
    /// For the guest, whose serial port takes a few bytes at a time.
    backlog: VecDeque<u8>,
    /// Nothing more is read before the guest has taken the backlog.
    waits: bool,
    /// The line so far, while the monitor is open.
    monitor: Option<String>,
}

const INPUT: u32 = 0;
const DRAINED: u32 = 1;

impl MutEventSubscriber for Keyboard {
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
            if self.waits && self.backlog.is_empty() {
                self.resume(ops);
            }
            return;
        }
        match self.read() {
            Ok(0) => pause(ops),
            Ok(_) if !self.terminal && !self.backlog.is_empty() => {
                self.waits = true;
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

impl Keyboard {
    /// Reads from now on whenever there is something.
    fn resume(&mut self, ops: &mut EventOps<'_>) {
        self.waits = false;
        match ops.add(input_events()) {
            Ok(()) => {}
            // Files are always ready, and epoll refuses to wait for them.
            Err(event_manager::Error::Epoll(error))
                if error.errno() == Errno::PERM.raw_os_error() =>
            {
                self.waits = matches!(self.read(), Ok(1..));
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
            if self.terminal {
                self.key(byte);
            } else {
                self.backlog.push_back(byte);
            }
        }
        self.send();
        Ok(count)
    }

    fn send(&mut self) {
        let sent = self.control.serial().send(self.backlog.make_contiguous());
        self.backlog.drain(..sent);
    }

    fn key(&mut self, byte: u8) {
        match (self.keys.take(byte), &mut self.monitor) {
            (None, _) => {}
            (Some(Key::Quit), _) => self.control.stop(Outcome::Stopped),
            (Some(Key::Help), _) => say(HELP),
            (Some(Key::Monitor), Some(_)) => {
                self.monitor = None;
                say("\n");
            }
            (Some(Key::Monitor), None) => {
                self.monitor = Some(String::new());
                say("\nmonitor; help lists its commands\n> ");
            }
            (Some(Key::Byte(byte)), Some(line)) => {
                if let Some(line) = edit(line, byte) {
                    self.command(&line);
                    say("> ");
                }
            }
            (Some(Key::Byte(byte)), None) if self.backlog.len() < BACKLOG => {
                self.backlog.push_back(byte);
            }
            (Some(Key::Byte(_)), None) => {}
        }
    }

    fn command(&self, line: &str) {
        match line.trim() {
            "" => {}
            "status" => say(&format!("running, {} exits so far\n", self.control.exits())),
            "power-button" => match self.control.press_power_button() {
                Ok(()) => say("pressed\n"),
                Err(error) => say(&format!("KVM took no interrupt: {error}\n")),
            },
            "reset" => self.control.stop(Outcome::Reset),
            "quit" => self.control.stop(Outcome::Stopped),
            "help" => say(MONITOR_HELP),
            other => say(&format!("no command {other:?}; help lists them\n")),
        }
    }
}

/// Adds a key to the line; returns the line when it is complete.
fn edit(line: &mut String, byte: u8) -> Option<String> {
    const BACKSPACE: u8 = 0x08;
    const DELETE: u8 = 0x7f;
    match byte {
        b'\r' | b'\n' => {
            say("\n");
            return Some(std::mem::take(line));
        }
        BACKSPACE | DELETE if line.pop().is_some() => say("\x08 \x08"),
        b' '..=b'~' => {
            line.push(char::from(byte));
            say(&line[line.len() - 1..]);
        }
        _ => {}
    }
    None
}

/// To the terminal, beside the guest's own output.
fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    // If it fails, nobody reads it.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_monitor_can_be_edited() {
        let mut line = String::new();
        let mut lines = Vec::new();
        for byte in *b"\x7fstatux\x7fs\x1b\rx\x08quit\n" {
            lines.extend(edit(&mut line, byte));
        }
        assert_eq!(lines, ["status", "quit"]);
    }
}
