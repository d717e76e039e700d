//! Standard input and output: raw mode, and who reads and writes them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use casemate_config::{GuestConfig, Serial};
use casemate_machine::{ConsolePorts, Outlet};
use casemate_sandbox::{Sandbox, Thread};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{OptionalActions, OutputModes, isatty, tcgetattr, tcsetattr};

use super::keyboard::{Keyboard, Sink};

/// Lets keys reach the guest as they are typed, until the parent makes the terminal what it was; `false` if
/// standard input is no terminal.
pub(super) fn make_raw() -> anyhow::Result<bool> {
    let stdin = io::stdin();
    if !isatty(&stdin) {
        return Ok(false);
    }
    let mut raw = tcgetattr(&stdin).context("could not read the terminal's settings")?;
    raw.make_raw();
    // What we say ourselves has no carriage returns.
    raw.output_modes |= OutputModes::OPOST;
    tcsetattr(&stdin, OptionalActions::Now, &raw)
        .context("could not set the terminal to raw mode")?;
    Ok(true)
}

/// How long the end of a run waits for an output that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);
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
    /// Their threads enter `sandbox`.
    pub(super) fn open(sandbox: &Sandbox) -> io::Result<Self> {
        // The files have no buffer that would hold back a prompt.
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let errors = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let output = outlet("output", output, sandbox)?;
        Ok(Self { output, errors: outlet("errors", errors, sandbox)? })
    }

    /// Waits until the guest's output is written, or nobody takes it. Returns the bytes that are lost,
    /// and why.
    pub(super) fn flush_output(&self) -> (u64, Option<String>) {
        flush(&self.output)
    }

    /// As [`Screen::flush_output`], for messages. Where nobody takes them, there is nobody to tell.
    pub(super) fn flush_errors(&self) {
        let _ = self.errors.flush(PATIENCE, LIMIT);
    }
}

/// The guest's ends of standard input and output, and of what the serial port has in their place.
pub(super) struct Terminal {
    /// What the serial port sends.
    pub(super) serial: Outlet,
    /// The virtio console, if the guest is to have one.
    pub(super) console: Option<ConsolePorts>,
    /// Reads standard input, unless the console does.
    pub(super) keyboard: Option<Keyboard>,
    /// Reads the serial port's socket.
    pub(super) socket: Option<Keyboard>,
}

impl Terminal {
    /// Serial port and console write to standard output, unless the serial port has a place of its own.
    /// Standard input goes to the console if there is one; on a terminal by way of the keyboard, which
    /// takes the escape keys out.
    pub(super) fn open(
        config: &GuestConfig,
        terminal: bool,
        screen: &Screen,
        sandbox: &Sandbox,
    ) -> anyhow::Result<Self> {
        let output = screen.output.clone();
        let (serial, socket) = match &config.serial {
            Some(place) => placed(place, sandbox)?,
            None => (output.clone(), None),
        };
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let socket =
            socket.map(|socket| Keyboard::new(socket, Sink::Serial, false, output.clone()));
        let mut opened = Self { serial, console: None, keyboard: None, socket };
        let typing = |stdin, sink| Some(Keyboard::new(stdin, sink, terminal, output.clone()));
        if config.console {
            let input = if terminal {
                let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
                opened.keyboard = typing(stdin, Sink::Console(writer.into()));
                reader
            } else {
                stdin.into()
            };
            opened.console = Some(ConsolePorts { input: Some(input), output });
        } else if config.serial.is_none() {
            opened.keyboard = typing(stdin, Sink::Serial);
        } else if terminal {
            opened.keyboard = typing(stdin, Sink::Nowhere);
        }
        Ok(opened)
    }
}

/// Waits until what was written to `outlet` has arrived, or nobody takes it. Returns the bytes that are
/// lost, and why.
pub(super) fn flush(outlet: &Outlet) -> (u64, Option<String>) {
    let left = outlet.flush(PATIENCE, LIMIT);
    let (lost, error) = outlet.lost();
    (lost + left as u64, error)
}

/// An outlet to `file` whose thread enters `sandbox`.
fn outlet(name: &str, file: File, sandbox: &Sandbox) -> io::Result<Outlet> {
    let sandbox = sandbox.clone();
    Outlet::new(name, file, move || Ok(sandbox.enter(Thread::Writer)?))
}

/// The output of a serial port that leads to a file or a socket, and its input.
fn placed(place: &Serial, sandbox: &Sandbox) -> anyhow::Result<(Outlet, Option<File>)> {
    let failed = |path: &Path| format!("could not open the serial port at {}", path.display());
    match place {
        Serial { socket: Some(path), .. } => {
            let socket = UnixStream::connect(path).with_context(|| failed(path))?;
            let input = File::from(OwnedFd::from(socket.try_clone()?));
            let output = File::from(OwnedFd::from(socket));
            Ok((outlet("serial output", output, sandbox)?, Some(input)))
        }
        Serial { file, .. } => {
            let path = file.as_deref().unwrap_or(Path::new(""));
            let file = File::options().append(true).create(true).open(path);
            Ok((outlet("serial output", file.with_context(|| failed(path))?, sandbox)?, None))
        }
    }
}
