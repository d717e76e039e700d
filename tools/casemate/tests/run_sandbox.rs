//! The sandbox of `casemate run`, as the kernel shows it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use casemate_test_support::process::guest_process;
use casemate_test_support::tiny::{HALT, Start, elf, out, say};
use rustix::process::{Pid, Signal, getuid, kill_process};

struct Guest {
    child: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    /// A guest with every device of a test without privileges, that says '>' and halts.
    fn start(mode: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("kernel"), elf(&[&say(">")[..], &HALT].concat(), Start::Pvh)).unwrap();
        File::create(path("disk")).unwrap().set_len(1 << 20).unwrap();
        fs::create_dir(path("sockets")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args(["run", "--platform", "plain", "--memory", "16M", "--vcpus", "2"]);
        command.args(["--sandbox", mode]);
        command.args(["--balloon", "true", "--console", "true", "--stop-timeout", "0"]);
        command.args(["--kernel", &path("kernel"), "--disk", &(path("disk") + ",queues=2")]);
        command.args(["--vsock", &path("sockets/guest")]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.as_mut().unwrap();
        // The first byte that the guest says may come before its main thread is in the sandbox.
        stdout.read_exact(&mut [0]).unwrap_or_default();
        std::thread::sleep(std::time::Duration::from_millis(300));
        Self { child, folder }
    }

    fn proc(&self) -> PathBuf {
        let id = guest_process(self.child.id()).unwrap();
        Path::new("/proc").join(id.to_string())
    }

    /// Fields of the status of each thread, by the thread's name.
    fn threads(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let tasks = fs::read_dir(self.proc().join("task")).unwrap();
        let status = |task: PathBuf| {
            let text = fs::read_to_string(task.join("status")).unwrap();
            let fields = text.lines().filter_map(|line| line.split_once(":\t"));
            let fields: BTreeMap<_, _> =
                fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            (fields["Name"].clone(), fields)
        };
        let threads = tasks.map(|task| status(task.unwrap().path()));
        // The kernel's own.
        threads
            .filter(|(name, _)| !name.starts_with("kvm-") && !name.starts_with("vhost-"))
            .collect()
    }

    fn end(self) -> (i32, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let output = self.child.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

const CAPABILITIES: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

#[test]
fn every_thread_has_a_filter_and_no_capability() {
    let guest = Guest::start("on", &[]);
    let threads = guest.threads();
    let names: Vec<_> = threads.keys().map(String::as_str).collect();
    let expected = [
        "casemate", "disk0.0", "disk0.1", "errors", "io", "output", "serial", "teardown", "vcpu0",
        "vcpu1", "vsock",
    ];
    assert_eq!(names, expected);
    for (name, fields) in &threads {
        assert_eq!((&*fields["Seccomp"], &*fields["NoNewPrivs"]), ("2", "1"), "{name}");
        for set in CAPABILITIES {
            assert_eq!(fields[set], "0000000000000000", "{set} of {name}");
        }
    }
    assert_eq!(guest.end(), (123, "casemate: the guest was stopped from the host\n".into()));
}

#[test]
fn sandbox_that_is_off_shows() {
    let guest = Guest::start("off", &[]);
    assert!(guest.threads().values().all(|fields| fields["Seccomp"] == "0"));
    assert!(fs::exists(guest.proc().join("root/etc/passwd")).unwrap());
    assert_eq!(guest.end().0, 123);
}

#[test]
fn root_directory_has_the_sockets_and_nothing_else() {
    if !getuid().is_root() {
        return;
    }
    let guest = Guest::start("on", &[]);
    let root = guest.proc().join("root");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(Path::new("/").join(path.strip_prefix(&root).unwrap()));
            }
        }
    }
    assert_eq!(found, [guest.folder.path().join("sockets/guest")]);
    let mounts = fs::read_to_string(guest.proc().join("mounts")).unwrap();
    assert!(mounts.lines().next().unwrap().contains(" / tmpfs ro,nosuid,nodev,noexec"), "{mounts}");
    let socket = guest.folder.path().join("sockets/guest");
    assert_eq!(guest.end().0, 123);
    assert!(!fs::exists(socket).unwrap());
}

#[test]
fn user_and_group_change_in_every_thread() {
    if !getuid().is_root() {
        return;
    }
    let guest = Guest::start("on", &["--user", "12345:23456"]);
    for (name, fields) in guest.threads() {
        assert_eq!(fields["Uid"], "12345\t12345\t12345\t12345", "{name}");
        assert_eq!(fields["Gid"], "23456\t23456\t23456\t23456", "{name}");
        assert_eq!(fields["Groups"].trim(), "", "{name}");
        assert_eq!((&*fields["Seccomp"], &*fields["CapPrm"]), ("2", "0000000000000000"), "{name}");
    }
    assert_eq!(guest.end().0, 123);
}

#[test]
fn guest_memory_is_in_no_core_file() {
    let guest = Guest::start("on", &[]);
    let smaps = fs::read_to_string(guest.proc().join("smaps")).unwrap();
    let mut size = "";
    let mut seen = 0;
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Size:") {
            size = value.trim();
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| size == "16384 kB") {
            assert!(flags.split_ascii_whitespace().any(|flag| flag == "dd"), "{flags}");
            seen += 1;
        }
    }
    assert_eq!(seen, 1, "{smaps}");
    // Files of a process that is not dumpable are root's.
    let owner =
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(guest.proc().join("fd")).unwrap());
    assert_eq!(owner, 0);
    assert_eq!(guest.end().0, 123);
}

#[test]
fn file_that_a_caller_left_open_does_not_stay_open() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, elf(&[&say(">")[..], &HALT].concat(), Start::Pvh)).unwrap();
    let script = format!(
        "exec 7</etc/hostname; exec {} run --platform plain --memory 4M --sandbox on --kernel {}",
        env!("CARGO_BIN_EXE_casemate"),
        kernel.display()
    );
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let open = |process: u32| {
        fs::exists(format!("/proc/{process}/fd/7")).unwrap()
            && fs::read_link(format!("/proc/{process}/fd/7")).unwrap() == Path::new("/etc/hostname")
    };
    assert!(open(child.id()));
    assert!(!open(guest_process(child.id()).unwrap()));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wrong_sandboxes_and_users_are_refused() {
    for (flags, words) in [
        (["--sandbox", "maybe"], "possible values: on, log, off"),
        (["--user", "1:1"], "--user is a part of the sandbox: add --sandbox on"),
        (["--user", "no-such-user"], "/etc/passwd has no user \"no-such-user\"; give UID:GID"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        let output = command.args(["run", "--kernel", "/none"]).args(flags).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn guest_ends_by_itself_in_a_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, elf(&out(0x501, 7), Start::Pvh)).unwrap();
    for mode in ["on", "log", "off"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args([
            "run",
            "--platform",
            "plain",
            "--memory",
            "4M",
            "--sandbox",
            mode,
            "--kernel",
        ]);
        let output = command.arg(&kernel).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{mode}: {output:?}");
    }
}
