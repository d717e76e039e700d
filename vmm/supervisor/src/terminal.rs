//! The terminal as it is before a guest's process starts.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The settings of standard input, if it is a terminal.
pub(crate) struct Terminal(Option<Termios>);

impl Terminal {
    pub(crate) fn now() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }

    /// Makes the terminal what it was.
    pub(crate) fn restore(&self) {
        if let Some(before) = &self.0 {
            // If it fails, the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
