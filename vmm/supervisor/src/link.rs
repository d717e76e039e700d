//! The link between the two processes of a run: single bytes, both ways.
//!
//! The child holds the guest, so that the parent takes nothing longer from it than a byte.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

/// A message of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Press the power button.
    PowerButton = b'b',
    /// End the guest.
    Stop = b's',
    /// End the guest, which did not power off in time.
    TimeOut = b't',
    /// Answer with [`Event::Alive`].
    Ping = b'p',
    /// A new guest follows this one.
    Restart = b'y',
    /// No other guest follows this one.
    NoRestart = b'n',
}

/// A message of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// The guest is launched.
    Launched = b'l',
    /// The event loop answers.
    Alive = b'p',
    /// The guest has ended, and its threads with it.
    Ended = b'e',
    /// The guest's configuration asks for a restart: answer with [`Command::Restart`] or
    /// [`Command::NoRestart`].
    Restart = b'r',
}

/// What follows a guest that is to start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one.
    Restart,
    /// No other one: there were too many.
    TooMany,
    /// No other one: the run is to end.
    Stopped,
}

impl Command {
    const ALL: [Self; 6] =
        [Self::PowerButton, Self::Stop, Self::TimeOut, Self::Ping, Self::Restart, Self::NoRestart];
}

impl Event {
    const ALL: [Self; 4] = [Self::Launched, Self::Alive, Self::Ended, Self::Restart];
}

/// Messages that one read takes.
const BATCH: usize = 16;

/// The parent's end.
pub(crate) struct ToChild(UnixStream);

/// The child's end.
pub struct ToParent(UnixStream);

/// Both ends of a new link.
pub(crate) fn pair() -> io::Result<(ToChild, ToParent)> {
    let (parent, child) = UnixStream::pair()?;
    parent.set_nonblocking(true)?;
    child.set_nonblocking(true)?;
    Ok((ToChild(parent), ToParent(child)))
}

impl ToChild {
    /// Sends a command. A child that has ended, or that leaves hundreds of commands unread, gets none.
    pub(crate) fn send(&self, command: Command) {
        let _ = (&self.0).write(&[command as u8]);
    }

    /// Events that have arrived; `None` once the child has closed its end.
    pub(crate) fn events(&self) -> Option<Vec<Event>> {
        arrived(&self.0, |byte| Event::ALL.into_iter().find(|event| *event as u8 == byte))
    }
}

impl AsFd for ToChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ToParent {
    /// A second handle of the same end.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends an event. Fails only where the parent has ended, which ends this process as well.
    pub fn send(&self, event: Event) {
        let _ = (&self.0).write(&[event as u8]);
    }

    /// Commands that have arrived; `None` once the parent has ended.
    #[must_use]
    pub fn commands(&self) -> Option<Vec<Command>> {
        arrived(&self.0, |byte| Command::ALL.into_iter().find(|known| *known as u8 == byte))
    }

    /// Asks the parent whether another guest may follow this one, and waits for its answer.
    #[must_use]
    pub fn ask_for_restart(&self) -> Next {
        self.send(Event::Restart);
        loop {
            // A signal, or a shortage of memory: once more.
            let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], None);
            let Some(commands) = self.commands() else { return Next::Stopped };
            for command in commands {
                match command {
                    Command::Restart => return Next::Restart,
                    Command::NoRestart => return Next::TooMany,
                    Command::Stop | Command::TimeOut => return Next::Stopped,
                    // The guest has ended already.
                    Command::PowerButton | Command::Ping => {}
                }
            }
        }
    }
}

impl AsFd for ToParent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ToParent {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Messages that have arrived, without bytes that are none; `None` once the other end is closed.
fn arrived<T>(mut stream: &UnixStream, known: impl Fn(u8) -> Option<T>) -> Option<Vec<T>> {
    let mut bytes = [0; BATCH];
    let count = match stream.read(&mut bytes) {
        Ok(0) => return None,
        Ok(count) => count,
        Err(_) => 0,
    };
    Some(bytes.into_iter().take(count).filter_map(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_and_other_bytes_are_skipped() {
        let (parent, child) = pair().unwrap();
        for command in Command::ALL {
            parent.send(command);
        }
        assert_eq!(child.commands().unwrap(), Command::ALL);
        (&child.0).write_all(b"l?\0\xff").unwrap();
        child.send(Event::Alive);
        assert_eq!(parent.events().unwrap(), [Event::Launched, Event::Alive]);
        assert_eq!(parent.events().unwrap(), []);
    }

    #[test]
    fn parent_that_ended_is_told_from_one_that_is_silent() {
        let (parent, child) = pair().unwrap();
        assert_eq!(child.commands(), Some(Vec::new()));
        drop(parent);
        assert_eq!(child.commands(), None);
        assert_eq!(child.ask_for_restart(), Next::Stopped);
    }

    #[test]
    fn restart_is_what_the_parent_answers() {
        for (answers, next) in [
            (&[Command::Ping, Command::PowerButton, Command::Restart][..], Next::Restart),
            (&[Command::NoRestart], Next::TooMany),
            (&[Command::Stop, Command::Restart], Next::Stopped),
        ] {
            let (parent, child) = pair().unwrap();
            for answer in answers {
                parent.send(*answer);
            }
            assert_eq!(child.ask_for_restart(), next, "{answers:?}");
            assert_eq!(parent.events().unwrap(), [Event::Restart]);
        }
    }
}
