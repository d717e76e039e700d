//! `casemate run` on a terminal: raw while a guest runs, as it was after every way out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use casemate_test_support::process::{guest_process, receive, wait_for_end};
use casemate_test_support::tiny::{HALT, Start, elf, out, say};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Waits until a byte comes through the serial port.
const KEY: [u8; 9] = [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 1, 0x74, 0xf7];

/// A guest on a terminal of its own.
struct OnTerminal {
    /// The side of whoever sits there.
    keys: File,
    /// The side of the program.
    terminal: OwnedFd,
    shown: Receiver<u8>,
    child: Child,
    _folder: tempfile::TempDir,
}

impl OnTerminal {
    /// Says '>', and after a key does the rest.
    fn start(rest: &[u8], flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        let code = [&say(">")[..], &KEY, rest, &HALT].concat();
        fs::write(&kernel, elf(&code, Start::Pvh)).unwrap();
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let name = ptsname(&keys, Vec::new()).unwrap();
        let flags_of_file = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = open(name, flags_of_file, Mode::empty()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .args(["run", "--platform", "plain", "--sandbox", "on", "--kernel"])
            .arg(kernel)
            .args(flags)
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap())
            .spawn()
            .unwrap();
        let keys = File::from(keys);
        let (mut screen, (sender, shown)) = (keys.try_clone().unwrap(), mpsc::channel());
        thread::spawn(move || {
            let mut byte = [0];
            while matches!(screen.read(&mut byte), Ok(1)) && sender.send(byte[0]).is_ok() {}
        });
        Self { keys, terminal, shown, child, _folder: folder }
    }

    /// Waits for the guest's first word: the terminal is raw then.
    fn starts(&self) {
        assert_eq!(receive(self.child.id(), "a prompt", &self.shown), b'>');
        assert!(!self.is_as_it_was());
    }

    fn is_as_it_was(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Its exit status, and what was on the screen.
    fn end(mut self) -> (i32, String) {
        let status = wait_for_end(&mut self.child, "the guest");
        assert!(self.is_as_it_was(), "the terminal is still raw");
        // All of it is on its way: it was written before the end.
        let shown = std::iter::from_fn(|| self.shown.recv_timeout(Duration::from_millis(200)).ok());
        (status, String::from_utf8(shown.collect()).unwrap())
    }
}

#[test]
fn the_terminal_is_as_it_was_after_every_way_out() {
    // What is typed, what the guest does then, the status.
    let triple_fault = [0x0f, 0x01, 0x1d, 0, 0, 0, 0, 0x0f, 0x0b];
    let cases: [(&[u8], &[u8], i32); 7] = [
        (b"k", &out(0x600, 5 << 2 | 1 << 5), 0),
        (b"k", &out(0x501, 9), 9),
        (b"k", &out(0x602, 1), 120),
        (b"k", &out(0x505, 1), 121),
        (b"k", &triple_fault, 122),
        (b"\x01x", &[], 123),
        (b"\x01cquit\r", &[], 123),
    ];
    for (keys, rest, status) in cases {
        let mut guest = OnTerminal::start(rest, &["--memory", "4M"]);
        guest.starts();
        guest.keys.write_all(keys).unwrap();
        assert_eq!(guest.end().0, status, "{keys:?}");
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let guest = OnTerminal::start(&[], &["--memory", "4M", "--stop-timeout", "0"]);
        guest.starts();
        kill_process(Pid::from_child(&guest.child), signal).unwrap();
        assert_eq!(guest.end().0, 123, "{signal:?}");
    }
    // The parent makes it so if the guest's process cannot.
    let guest = OnTerminal::start(&[], &["--memory", "4M"]);
    guest.starts();
    let process = guest_process(guest.child.id()).and_then(|id| id.try_into().ok());
    kill_process(process.and_then(Pid::from_raw).unwrap(), Signal::KILL).unwrap();
    let (status, words) = guest.end();
    assert_eq!(status, 124, "{words}");
    assert!(words.contains("signal 9 killed the process of the guest"), "{words}");
    // This fails once the guest is launched.
    let (status, words) = OnTerminal::start(&[], &["--record", "/none/launch"]).end();
    assert_eq!(status, 2, "{words}");
    assert!(words.contains("could not record the launch in /none/launch"), "{words}");
}

#[test]
fn keys_reach_the_guest_but_for_those_of_the_monitor() {
    // Says the key: in al, out dx.
    let echo = [&[0x66, 0xba, 0xf8, 0x03, 0xec, 0xee][..], &out(0x501, 5)].concat();
    // What a terminal would make a signal of, and the escape itself.
    for (keys, key) in [(&b"\x03"[..], "\x03"), (b"\x01\x01", "\x01")] {
        let mut guest = OnTerminal::start(&echo, &["--memory", "4M"]);
        guest.starts();
        guest.keys.write_all(keys).unwrap();
        let (status, shown) = guest.end();
        assert_eq!(status, 5);
        assert!(shown.starts_with(key), "{shown:?}");
    }
    let mut guest = OnTerminal::start(&echo, &["--memory", "4M"]);
    guest.starts();
    guest
        .keys
        .write_all(b"\x01cstatus\rhelp\rwhat\rsnapshot\rballoon 1M\rpower-button\rreset\r")
        .unwrap();
    let (status, shown) = guest.end();
    assert_eq!(status, 120, "{shown}");
    for expected in [
        "exits so far",
        "press its power button",
        "no command \"what\"",
        "has no balloon",
        "copies no guest's memory",
        "pressed",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}
