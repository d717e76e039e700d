//! Standard input and output: raw mode, and who reads and writes them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use casemate_machine::{ConsolePorts, Outlet};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

use super::keyboard::{Keyboard, Sink};

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

/// The terminal as it is before a guest's process starts, for the parent.
pub(super) struct Untouched(Option<Termios>);

impl Untouched {
    pub(super) fn now() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }

    /// Makes the terminal what it was. A process that ends by itself has done so.
    pub(super) fn restore(&self) {
        if let Some(before) = &self.0 {
            // If it fails, the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// How long the end of a run waits for an output that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for one that takes little at a time.
const LIMIT: Duration = Duration::from_secs(20);

/// Standard output and standard error. Nobody waits for whoever reads them.
#[derive(Clone)]
pub(super) struct Screen {
    /// For the guest, and the monitor beside it.
    pub(super) output: Outlet,
    pub(super) errors: Outlet,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        // The files have no buffer that would hold back a prompt.
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let errors = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Ok(Self { output: Outlet::new("output", output)?, errors: Outlet::new("errors", errors)? })
    }

    /// Waits until the guest's output is written, or nobody takes it. Returns the bytes that are lost,
    /// and why.
    pub(super) fn flush_output(&self) -> (u64, Option<String>) {
        let left = self.output.flush(PATIENCE, LIMIT);
        let (lost, error) = self.output.lost();
        (lost + left as u64, error)
    }

    /// As [`Screen::flush_output`], for messages. Where nobody takes them, there is nobody to tell.
    pub(super) fn flush_errors(&self) {
        let _ = self.errors.flush(PATIENCE, LIMIT);
    }
}

/// The guest's ends of standard input and output.
pub(super) struct Terminal {
    /// The virtio console, if the guest is to have one.
    pub(super) console: Option<ConsolePorts>,
    /// Reads standard input, unless the console does.
    pub(super) keyboard: Option<Keyboard>,
}

impl Terminal {
    /// Both the serial port and the console write to standard output. Input goes to the console if
    /// there is one; on a terminal by way of the keyboard, which takes the escape keys out.
    pub(super) fn open(console: bool, terminal: bool, screen: &Screen) -> io::Result<Self> {
        let output = screen.output.clone();
        let typing = |sink| Some(Keyboard::new(sink, terminal, output.clone()));
        if !console {
            return Ok(Self { console: None, keyboard: typing(Sink::Serial) });
        }
        let (input, keyboard) = if terminal {
            let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
            (reader, typing(Sink::Console(writer.into())))
        } else {
            (io::stdin().as_fd().try_clone_to_owned()?, None)
        };
        let console = Some(ConsolePorts { input: Some(input), output });
        Ok(Self { console, keyboard })
    }
}
