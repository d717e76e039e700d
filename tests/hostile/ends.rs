//! A guest ends in every way there is, whoever does not read, accept or answer.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use casemate_test_support::process::{guest_process, wait_for, wait_for_end as end};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::guest::{command, processor_time};

const SIGNALS: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];

/// Waits until a pipe that nobody reads takes no more. How much that is depends on its writers.
fn wait_until_full(pipe: &PipeReader, writer: &Child) {
    let mut seen = (0, Instant::now());
    wait_for(writer.id(), "the pipe is full", || {
        let bytes = ioctl_fionread(pipe).unwrap();
        if bytes != seen.0 {
            seen = (bytes, Instant::now());
        }
        bytes >= 32768 && seen.1.elapsed() > Duration::from_secs(1)
    });
}

/// Starts a guest and waits until the pipe that takes its output, or its log, is full. Nobody reads it.
fn held(name: &str, flags: &[&str], log: bool) -> (Child, PipeReader, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), name, flags);
    let (reader, writer) = io::pipe().unwrap();
    let other = File::create(folder.path().join("other")).unwrap();
    if log {
        command.stdout(other).stderr(writer);
    } else {
        command.stdout(writer).stderr(other);
    }
    let child = command.spawn().unwrap();
    drop(command);
    wait_until_full(&reader, &child);
    (child, reader, folder)
}

#[test]
fn signals_end_a_guest_whose_output_nobody_reads() {
    let guests: [(&str, &[&str]); 2] =
        [("serial_flood_for_ever", &[]), ("console_flood_for_ever", &["--console", "true"])];
    for (name, flags) in guests {
        for signal in SIGNALS {
            let (mut child, _reader, _folder) = held(name, flags, false);
            kill_process(Pid::from_child(&child), signal).unwrap();
            assert_eq!(end(&mut child, name), 123, "{name} {signal:?}");
        }
    }
}

#[test]
fn guest_ends_itself_though_nobody_reads_its_output() {
    let (mut child, _reader, folder) = held("serial_flood", &[], false);
    assert_eq!(end(&mut child, "serial flood"), 42);
    let log = fs::read_to_string(folder.path().join("other")).unwrap();
    assert!(log.contains("standard output did not take "), "{log}");
}

#[test]
fn signals_end_a_guest_whose_log_nobody_reads() {
    for signal in SIGNALS {
        let (mut child, _reader, _folder) = held("exits_for_ever", &["--log", "trace"], true);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(end(&mut child, "log"), 123, "{signal:?}");
    }
}

#[test]
fn keys_end_a_guest_on_a_terminal_that_shows_nothing() {
    for keys in [&b"\x01x"[..], b"\x01cquit\r"] {
        let folder = tempfile::tempdir().unwrap();
        let screen =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = open(ptsname(&screen, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
        let mut command = command(folder.path(), "serial_flood_for_ever", &[]);
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        drop(command);
        // The terminal shows something once, and then no more.
        let mut screen = File::from(screen);
        screen.read_exact(&mut [0]).unwrap();
        let is_raw = || ioctl_fionread(&screen).unwrap() > 1000;
        wait_for(child.id(), "the terminal is full", is_raw);
        screen.write_all(keys).unwrap();
        assert_eq!(end(&mut child, "terminal"), 123, "{keys:?}");
    }
}

#[test]
fn guest_goes_on_though_nobody_accepts_its_connections() {
    let folder = tempfile::tempdir().unwrap();
    // As a process that is stopped: it listens, and accepts nothing.
    let _listener = UnixListener::bind(folder.path().join("sockets_1234")).unwrap();
    let name = "connections_that_nobody_accepts";
    let mut command = command(folder.path(), name, &["--vsock", "DIR/sockets"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(end(&mut child, name), 42);
}

#[test]
fn host_that_takes_all_descriptors_costs_neither_log_nor_processor() {
    let folder = tempfile::tempdir().unwrap();
    let guest = command(folder.path(), "sockets_for_ever", &["--vsock", "DIR/sockets"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\""]).arg(guest.get_program());
    shell.args(guest.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
    shell.stderr(File::create(folder.path().join("log")).unwrap());
    let mut child = shell.spawn().unwrap();
    // The driver is there.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let socket = folder.path().join("sockets");
    let flood = |count: usize| -> Vec<UnixStream> {
        (0..count).map(|_| UnixStream::connect(&socket).unwrap()).collect()
    };
    // More than there are descriptors for; the backlog takes the rest.
    let streams = flood(280);
    thread::sleep(Duration::from_millis(500));
    let before = processor_time(child.id());
    let started = Instant::now();
    thread::sleep(Duration::from_secs(3));
    // The guest spins on one processor: what is above that is the VMM's.
    let spent = u128::from(processor_time(child.id()) - before);
    let ticks = started.elapsed().as_millis() / 10;
    assert!(spent < ticks + ticks / 3, "{spent} ticks of {ticks}");
    let log = fs::metadata(folder.path().join("log")).unwrap().len();
    assert!(log < 64 << 10, "{log} bytes of log");
    drop(streams);
    // It listens again: whoever says no CONNECT is turned away.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"no greeting\n").unwrap();
    stream.set_nonblocking(true).unwrap();
    wait_for(
        child.id(),
        "the greeting is refused",
        || !matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
    );
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(end(&mut child, "descriptors"), 123);
}

#[test]
fn guest_that_needs_more_descriptors_than_there_are_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let guest = command(folder.path(), "exits_for_ever", &["--disk", "DIR/disk,queues=4"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 32; exec \"$0\" \"$@\""]).arg(guest.get_program());
    let output = shell.args(guest.get_args()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("RLIMIT_NOFILE is 32"), "{text}");
}

#[test]
fn second_guest_on_an_image_is_refused_with_the_name_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--disk", "DIR/disk"];
    let mut first = command(folder.path(), "serial_flood_for_ever", &flags);
    let mut first = first.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    first.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let output = command(folder.path(), "serial_flood", &flags).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    let holder = guest_process(first.id()).unwrap();
    assert!(text.contains(&format!("in use by process {holder}")), "{text}");
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    assert_eq!(end(&mut first, "the first"), 123);
}
