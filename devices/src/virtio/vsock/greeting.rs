//! What a process on the host says first: `CONNECT <port>\n`.

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a process may take to say its line.
const PATIENCE: Duration = Duration::from_secs(10);

/// `CONNECT 4294967295\n` is the longest.
const LONGEST: usize = 19;

/// A process that has connected and not yet said to which port of the guest.
pub(super) struct Greeting {
    stream: UnixStream,
    line: [u8; LONGEST],
    length: usize,
    began: Instant,
}

/// How far a greeting has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More is to come.
    Waiting,
    /// The whole line is there, and names this port of the guest.
    Complete(u32),
    /// This is none, or the process has gone.
    Refused,
}

impl Greeting {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, line: [0; LONGEST], length: 0, began: Instant::now() }
    }

    /// Whether the process has taken too long.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= PATIENCE
    }

    pub(super) const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads on. Byte by byte: what follows the line is the guest's.
    pub(super) fn proceed(&mut self) -> Progress {
        while let Some(next) = self.line.get_mut(self.length..=self.length) {
            match self.stream.read(next) {
                Ok(0) => return Progress::Refused,
                Ok(_) if next == b"\n" => {
                    let port = port(&self.line[..self.length]);
                    return port.map_or(Progress::Refused, Progress::Complete);
                }
                Ok(_) => self.length += 1,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Progress::Waiting;
                }
                Err(_) => return Progress::Refused,
            }
        }
        Progress::Refused
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let (command, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // `parse` alone would take a sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    (command.eq_ignore_ascii_case("connect") && digits).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn after(said: &[u8]) -> (Progress, UnixStream) {
        let (ours, mut process) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        process.write_all(said).unwrap();
        let mut greeting = Greeting::new(ours);
        (greeting.proceed(), greeting.into_stream())
    }

    #[test]
    fn a_line_names_a_port_and_what_follows_is_left_alone() {
        let (progress, mut stream) = after(b"CONNECT 1024\nhello");
        assert_eq!(progress, Progress::Complete(1024));
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn half_a_line_waits_while_the_process_is_there() {
        let (ours, mut process) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(ours);
        process.write_all(b"CONNECT 10").unwrap();
        assert_eq!(greeting.proceed(), Progress::Waiting);
        process.write_all(b"24\n").unwrap();
        assert_eq!(greeting.proceed(), Progress::Complete(1024));
        drop(process);
        assert_eq!(greeting.proceed(), Progress::Refused);
    }

    #[test]
    fn silence_is_overdue_after_a_while() {
        let (ours, _process) = UnixStream::pair().unwrap();
        let greeting = Greeting::new(ours);
        assert!(!greeting.is_overdue(Instant::now()));
        assert!(greeting.is_overdue(Instant::now() + PATIENCE));
    }

    #[test]
    fn anything_else_is_refused() {
        let lines: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n",
            b"CONNECT\n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"CONNECT 00000000000000000001\n",
        ];
        for line in lines {
            assert_eq!(after(line).0, Progress::Refused, "{line:?}");
        }
    }
}
