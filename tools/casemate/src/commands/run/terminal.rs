//! Standard input and output: raw mode, and who reads and writes them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use casemate_machine::ConsolePorts;
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

/// Who has standard input and output while a guest runs.
pub(super) struct Terminal {
    /// The serial port's output.
    pub(super) serial: Box<dyn Write + Send>,
    /// The virtio console, if the guest is to have one.
    pub(super) console: Option<ConsolePorts>,
    /// Reads standard input, unless the console does.
    pub(super) keyboard: Option<Keyboard>,
}

impl Terminal {
    /// Both the serial port and the console write to standard output. Input goes to the console if
    /// there is one; on a terminal by way of the keyboard, which takes the escape keys out.
    pub(super) fn open(console: bool, terminal: bool) -> io::Result<Self> {
        // The file has no buffer that would hold back a prompt.
        let output = || io::stdout().as_fd().try_clone_to_owned();
        let serial = Box::new(File::from(output()?));
        if !console {
            let keyboard = Some(Keyboard::new(Sink::Serial, terminal));
            return Ok(Self { serial, console: None, keyboard });
        }
        let (input, keyboard) = if terminal {
            let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
            (reader, Some(Keyboard::new(Sink::Console(writer.into()), terminal)))
        } else {
            (io::stdin().as_fd().try_clone_to_owned()?, None)
        };
        let console = Some(ConsolePorts { input: Some(input), output: output()? });
        Ok(Self { serial, console, keyboard })
    }
}

/// To the terminal, beside the guest's own output.
pub(super) fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    // If it fails, nobody reads it.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
