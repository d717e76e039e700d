//! How `casemate run` is stopped, speaks to a service manager, and starts guests anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use casemate_test_support::process::{guest_process, wait_for, wait_for_end};
use casemate_test_support::tiny::{HALT, Start, elf, out, say};
use rustix::process::{Pid, Signal, kill_process};

struct Guest {
    child: Child,
    stdout: ChildStdout,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn start(code: &[u8], flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, elf(&[code, &HALT].concat(), Start::Pvh)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args([
            "run",
            "--platform",
            "plain",
            "--memory",
            "4M",
            "--sandbox",
            "on",
            "--kernel",
        ]);
        command.arg(kernel);
        command.args(flags).envs(environment.iter().copied()).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        Self { child, stdout, _folder: folder }
    }

    /// Waits for the guest's first byte.
    fn says(&mut self) {
        self.stdout.read_exact(&mut [0]).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn guest_process(&self) -> Pid {
        let id = guest_process(self.child.id()).unwrap();
        Pid::from_raw(id.try_into().unwrap()).unwrap()
    }

    /// Its exit status and messages.
    fn end(mut self) -> (i32, String) {
        wait_for_end(&mut self.child, "the run");
        let output = self.child.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

/// Says '>' and waits for its power button: the I/O APIC's input 5 as vector 0x40 of the local APIC,
/// which keeps it as requested while interrupts are off. Then powers off.
fn obedient() -> Vec<u8> {
    let store = |address: u32, value: u32| {
        [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let (select, window) = (0xfec0_0000, 0xfec0_0010);
    let mut code = store(0xfee0_00f0, 0x1ff);
    for (register, value) in [(0x1b, 0), (0x1a, 0x40)] {
        code.extend(store(select, register));
        code.extend(store(window, value));
    }
    code.extend(say(">"));
    // mov eax, [0xfee00220]; test al, 1; jz to the mov.
    code.extend([0xa1, 0x20, 0x02, 0xe0, 0xfe, 0xa8, 1, 0x74, 0xf7]);
    code.extend(out(0x600, 5 << 2 | 1 << 5));
    code
}

#[test]
fn sigterm_presses_the_power_button() {
    let mut guest = Guest::start(&obedient(), &[], &[]);
    guest.says();
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), (0, String::new()));
}

#[test]
fn guest_that_ignores_its_power_button_ends_after_the_stop_timeout() {
    let mut guest = Guest::start(&say(">"), &["--stop-timeout", "1"], &[]);
    guest.says();
    guest.signal(Signal::TERM);
    let words = "casemate: the guest did not power off in time and was ended\n";
    assert_eq!(guest.end(), (125, words.into()));
}

#[test]
fn second_signal_ends_a_guest_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let mut guest = Guest::start(&say(">"), &["--json", "--stop-timeout", "100000"], &[]);
        guest.says();
        guest.signal(Signal::TERM);
        // Of two signals of a kind that wait at the same time, the kernel keeps one.
        thread::sleep(Duration::from_millis(200));
        assert!(guest.child.try_wait().unwrap().is_none());
        guest.signal(second);
        let (status, words) = guest.end();
        assert_eq!(status, 123, "{words}");
        assert!(words.contains("\"outcome\":\"stopped\""), "{words}");
    }
}

/// A service manager's socket, and what came to it.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("notify").to_str().unwrap().into()
    }

    /// The next message of `guest` that is not a sign of life, and the number of those before it.
    fn next(&self, guest: &Guest) -> (String, u32) {
        let (mut buffer, mut alive, mut message) = ([0; 1024], 0, String::new());
        wait_for(guest.child.id(), "a message", || match self.socket.recv(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            length => match &buffer[..length.unwrap()] {
                b"WATCHDOG=1" => {
                    alive += 1;
                    false
                }
                text => {
                    message = String::from_utf8(text.into()).unwrap();
                    true
                }
            },
        });
        (message, alive)
    }
}

#[test]
fn service_manager_hears_of_start_stop_and_life() {
    let manager = Manager::new();
    let environment = [("NOTIFY_SOCKET", manager.path()), ("WATCHDOG_USEC", "100000".into())];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let started = Instant::now();
    let guest = Guest::start(&obedient(), &[], &environment);
    assert_eq!(manager.next(&guest).0, "READY=1\nSTATUS=The guest runs");
    let mut alive = 0;
    wait_for(guest.child.id(), "three signs of life", || {
        alive += u128::from(manager.socket.recv(&mut [0; 64]).is_ok());
        alive == 3
    });
    guest.signal(Signal::TERM);
    let (message, more) = manager.next(&guest);
    // One each 50 ms at most, and one at the start.
    let most = started.elapsed().as_millis() / 50 + 1;
    assert!(alive + u128::from(more) <= most, "{alive} and {more} signs of life, not {most}");
    let (stopping, timeout) = message.rsplit_once('=').unwrap();
    assert_eq!(
        stopping,
        "STOPPING=1\nSTATUS=The guest was asked to power off\nEXTEND_TIMEOUT_USEC"
    );
    assert_eq!(timeout, "120000000");
    assert_eq!(guest.end().0, 0);
}

#[test]
fn stuck_guest_process_feeds_no_watchdog() {
    let manager = Manager::new();
    let environment = [("NOTIFY_SOCKET", manager.path()), ("WATCHDOG_USEC", "100000".into())];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let guest = Guest::start(&say(">"), &["--stop-timeout", "0"], &environment);
    assert!(manager.next(&guest).0.starts_with("READY=1"));
    let process = guest.guest_process();
    kill_process(process, Signal::STOP).unwrap();
    thread::sleep(Duration::from_millis(300));
    while manager.socket.recv(&mut [0; 64]).is_ok() {}
    thread::sleep(Duration::from_millis(500));
    assert!(manager.socket.recv(&mut [0; 64]).is_err(), "a sign of life of a stopped process");
    kill_process(process, Signal::CONT).unwrap();
    wait_for(guest.child.id(), "a sign of life", || manager.socket.recv(&mut [0; 64]).is_ok());
    guest.signal(Signal::TERM);
    assert_eq!(guest.end().0, 123);
}

#[test]
fn watchdog_of_the_shell_that_started_it_is_not_fed() {
    let manager = Manager::new();
    let path = manager.path();
    let environment =
        [("NOTIFY_SOCKET", &*path), ("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "1")];
    let guest = Guest::start(&obedient(), &[], &environment);
    assert!(manager.next(&guest).0.starts_with("READY=1"));
    thread::sleep(Duration::from_millis(300));
    guest.signal(Signal::TERM);
    assert_eq!(manager.next(&guest).1, 0);
    assert_eq!(guest.end().0, 0);
}

#[test]
fn guest_does_not_outlive_the_parent() {
    let mut guest = Guest::start(&say(">"), &[], &[]);
    guest.says();
    let process = guest.guest_process().as_raw_nonzero();
    guest.child.kill().unwrap();
    guest.child.wait().unwrap();
    let status = format!("/proc/{process}/status");
    // Whoever inherits it may not have waited for it.
    wait_for(std::process::id(), "the end of the guest's process", || {
        fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"))
    });
}

#[test]
fn end_of_the_guest_process_ends_the_parent() {
    for (flags, expected) in [
        (&[][..], "casemate: signal 9 killed the process of the guest\n"),
        (&["--json"], "\"text\":\"signal 9 killed the process of the guest\"}\n"),
    ] {
        let mut guest = Guest::start(&say(">"), flags, &[]);
        guest.says();
        kill_process(guest.guest_process(), Signal::KILL).unwrap();
        let (status, words) = guest.end();
        assert_eq!(status, 124, "{words}");
        assert!(words.ends_with(expected), "{words}");
    }
}

#[test]
fn parent_holds_neither_guest_nor_kvm() {
    let mut guest = Guest::start(&say(">"), &["--balloon", "true"], &[]);
    guest.says();
    let (parent, child) = (guest.child.id(), guest.guest_process().as_raw_nonzero());
    let files = |process: &str| {
        let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let links = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        links.map(|link| link.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // What a caller left open is a file or a pipe.
    let own = |files: &[String]| {
        files
            .iter()
            .filter(|file| file.starts_with("anon_inode:") || file.starts_with("socket:"))
            .count()
    };
    let kvm = |files: &[String]| files.iter().filter(|file| file.contains("kvm")).count();
    let [of_parent, of_child] = [parent.to_string(), child.to_string()].map(|id| files(&id));
    assert!(kvm(&of_child) >= 2, "{of_child:?}");
    assert_eq!(kvm(&of_parent), 0, "{of_parent:?}");
    // Signals, the link, the child.
    assert_eq!(own(&of_parent), 3, "{of_parent:?}");
    let status = fs::read_to_string(format!("/proc/{parent}/status")).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    let maps = fs::read_to_string(format!("/proc/{parent}/maps")).unwrap();
    assert!(!maps.contains("kvm") && !maps.contains("memfd"), "{maps}");
    guest.signal(Signal::INT);
    assert_eq!(guest.end().0, 123);
}

#[test]
fn guest_that_resets_at_once_is_started_ten_times_more() {
    let mut guest = Guest::start(&out(0x602, 1), &["--on-reset", "restart", "--json"], &[]);
    let _ = guest.stdout.read_to_end(&mut Vec::new());
    let (status, words) = guest.end();
    assert_eq!(status, 120, "{words}");
    let events: Vec<serde_json::Value> =
        words.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((count("launched"), count("restarts"), count("gives-up")), (11, 10, 1), "{words}");
    assert_eq!(events.last().unwrap()["outcome"], "reset", "{words}");
}

#[test]
fn signal_between_two_guests_ends_the_run() {
    let mut guest = Guest::start(&out(0x602, 1), &["--on-reset", "restart", "--json"], &[]);
    // Pauses are long after a few restarts; there is no child then.
    wait_for(guest.child.id(), "a long pause", || {
        guest_process(guest.child.id()).is_none() && {
            thread::sleep(Duration::from_millis(250));
            guest_process(guest.child.id()).is_none()
        }
    });
    guest.signal(Signal::TERM);
    let _ = guest.stdout.read_to_end(&mut Vec::new());
    let (status, words) = guest.end();
    assert_eq!(status, 123, "{words}");
    let last = words.lines().last().unwrap();
    assert!(last.contains("\"outcome\":\"stopped\""), "{words}");
}

#[test]
fn wrong_environment_of_a_service_manager_is_refused() {
    for environment in [("NOTIFY_SOCKET", "relative"), ("WATCHDOG_USEC", "1s")] {
        let (status, words) = Guest::start(&say(">"), &[], &[environment]).end();
        assert_eq!(status, 2, "{words}");
        assert!(words.contains(&format!("{} = {:?}", environment.0, environment.1)), "{words}");
    }
}
