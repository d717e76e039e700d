//! `casemate run` with guests of a few instructions, on this machine's /dev/kvm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{fs, thread};

use casemate_test_support::process::{guest_process, receive, wait_for, wait_for_end};
use casemate_test_support::tiny::{CODE, HALT, Start, elf, out, say};

/// Instructions that read a byte from the serial port into AL: they wait for it (line status, data
/// ready).
const READ: [u8; 14] =
    [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 1, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec];

struct Guest {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Guest {
    fn start(code: &[u8], flags: &[&str]) -> Self {
        Self::start_with(code, flags, "")
    }

    /// With RUST_LOG; without, where that is empty.
    fn start_with(code: &[u8], flags: &[&str], log: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, elf(&[code, &HALT].concat(), Start::Pvh)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .args(["run", "--platform", "plain", "--memory", "4M", "--sandbox", "on", "--kernel"])
            .arg(kernel)
            .args(flags)
            .env("RUST_LOG", log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, _folder: folder }
    }

    /// What it writes from now on, byte by byte.
    fn written(&mut self) -> Receiver<u8> {
        let mut stdout = self.child.stdout.take().unwrap();
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let mut byte = [0];
            while matches!(stdout.read(&mut byte), Ok(1)) && sender.send(byte[0]).is_ok() {}
        });
        written
    }

    /// Its exit status and what it wrote.
    fn end(mut self) -> (i32, String, String) {
        wait_for_end(&mut self.child, "the guest");
        let output = self.child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// Runs a guest to its end.
fn run(code: &[u8], flags: &[&str]) -> (i32, String, String) {
    Guest::start(code, flags).end()
}

#[test]
fn each_end_has_its_status() {
    let triple_fault = {
        // lidt from the 6 zeroes behind; ud2.
        let table = (CODE + 9).to_le_bytes();
        [&[0x0f, 0x01, 0x1d][..], &table, &[0x0f, 0x0b], &[0; 6]].concat()
    };
    let power_off = out(0x600, 5 << 2 | 1 << 5);
    let cases: [(&str, &[u8], i32, &str); 7] = [
        ("power off", &power_off, 0, ""),
        ("status", &out(0x501, 42), 42, "casemate: the guest ended with status 42\n"),
        ("status 0", &out(0x501, 0), 0, "casemate: the guest ended with status 0\n"),
        ("reset", &out(0x602, 1), 120, "casemate: the guest reset\n"),
        ("keyboard reset", &out(0x64, 0xfe), 120, "casemate: the guest reset\n"),
        ("panic", &out(0x505, 1), 121, "casemate: the guest's kernel panicked\n"),
        ("triple fault", &triple_fault, 122, "casemate: the guest met a triple fault\n"),
    ];
    for (name, code, status, words) in cases {
        assert_eq!(run(code, &[]), (status, String::new(), words.to_owned()), "{name}");
    }
}

#[test]
fn guest_is_told_of_a_pause() {
    const CLOCK: u32 = 0x20_0000;
    let [clock, flags] = [CLOCK | 1, CLOCK + 29].map(u32::to_le_bytes);
    // MSR_KVM_SYSTEM_TIME_NEW; then until PVCLOCK_GUEST_STOPPED is set: pause, test byte, jz.
    let start =
        [&[0xb9, 1, 0x4d, 0x56, 0x4b, 0x31, 0xd2, 0xb8][..], &clock, &[0x0f, 0x30]].concat();
    let wait = [&[0xf3, 0x90, 0xf6, 0x05][..], &flags, &[2, 0x74, 0xf5]].concat();
    let mut guest = Guest::start(&[start, say("r"), wait, out(0x501, 42)].concat(), &[]);
    let written = guest.written();
    assert_eq!(receive(guest.child.id(), "a prompt", &written), b'r');
    let process = guest_process(guest.child.id()).unwrap().to_string();
    let state = || fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let signal = |name| {
        assert!(Command::new("kill").args([name, process.as_str()]).status().unwrap().success());
    };
    signal("-STOP");
    wait_for(std::process::id(), "the process stops", || state().contains(") T "));
    signal("-CONT");
    assert_eq!(guest.end().0, 42);
}

/// The guest of `tests/peers/disk`, which drives its disk by itself and says what fails.
#[test]
fn a_guest_without_an_operating_system_reads_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, disk) = (folder.path().join("kernel"), folder.path().join("disk"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/peers/guest");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-mno-red-zone"]);
    gcc.args(["-fcf-protection=none", "-nostdlib", "-static", "-no-pie"]);
    gcc.arg("-Wl,-Ttext=0x100000,--build-id=none,-e,start,-z,max-page-size=4096");
    gcc.args(["-DRANDOM1=64", "-DRANDOM32=1024", "-DSEQUENTIAL=16", "-o"]).arg(&kernel);
    gcc.args(["entry.S", "disk.c"].map(|name| format!("{source}/{name}")));
    assert!(gcc.status().expect("gcc is there after tests/scripts/setup").success());
    fs::write(&disk, vec![0x5a; 4 << 20]).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["run", "--platform", "plain", "--memory", "128M", "--kernel"])
        .arg(&kernel)
        .arg("--disk")
        .arg(&disk)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut output, (sender, lines)) = (child.stdout.take().unwrap(), mpsc::channel());
    thread::spawn(move || {
        let (mut said, mut buffer) = (String::new(), [0; 256]);
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if said.contains("FINISHED") || said.contains("FAILED") {
                break;
            }
        }
        sender.send(said)
    });
    let said = receive(child.id(), "the guest finishes", &lines);
    // It does not end by itself.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("FINISHED"), "{said}");
    for name in ["warm", "random1", "random32", "sequential"] {
        assert!(said.contains(&format!("{name} took ")), "{said}");
    }
}

#[test]
fn events_are_json_where_asked() {
    let (status, _, events) = run(&out(0x501, 7), &["--json", "--vcpus", "3"]);
    assert_eq!(status, 7);
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "launched");
    assert_eq!(events[0]["vcpus"], 3);
    assert_eq!(events[1]["outcome"], "status");
    assert_eq!(events[1]["status"], 7);
}

#[test]
fn failures_are_json_where_asked() {
    let flags = ["--json", "--record", "/none/launch"];
    for (flags, words) in [(&flags[..], "could not record"), (&["--json", "--vcpus=0"], "--vcpus")]
    {
        let (status, _, events) = run(&HALT, flags);
        assert_eq!(status, 2, "{events}");
        let event: serde_json::Value = serde_json::from_str(&events).unwrap();
        assert_eq!((&event["event"], &event["status"]), (&"failed".into(), &2.into()));
        assert!(event["text"].as_str().unwrap().starts_with(words), "{event}");
    }
}

#[test]
fn the_log_is_plain_text_where_no_terminal_is() {
    let (_, _, log) = run(&out(0x501, 7), &["--log", "casemate_kvm=debug"]);
    assert!(log.contains("KVM_SET_USER_MEMORY_REGION2") && !log.contains('\x1b'), "{log}");
}

#[test]
fn the_log_is_json_between_the_events_where_asked() {
    let guest = Guest::start_with(&out(0x501, 7), &["--json"], "casemate_kvm=debug");
    let (_, _, lines) = guest.end();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged = |line: &serde_json::Value| line["level"] == "DEBUG";
    assert!(lines.iter().any(logged), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line["event"].is_string()).count(), 2, "{lines:?}");
}

#[test]
fn as_many_processors_as_there_can_be_all_answer() {
    /// What the others do at 0x2_0000, in real mode: lock inc word cs:[16], the number of those that
    /// came; halt.
    const OTHER: [u8; 32] = {
        let mut code = [0; 32];
        code.split_at_mut(10)
            .0
            .copy_from_slice(&[0x2e, 0xf0, 0xff, 6, 16, 0, 0xfa, 0xf4, 0xeb, 0xfd]);
        code
    };
    // mov edi, 0x2_0000; mov esi, OTHER; mov ecx, 32; rep movsb.
    let other = (CODE + 62).to_le_bytes();
    let mut code =
        [&[0xbf, 0, 0, 2, 0, 0xbe][..], &other, &[0xb9, 32, 0, 0, 0, 0xfc, 0xf3, 0xa4]].concat();
    // By the local APIC's command register, INIT to all others, then start-up there.
    for command in [0x000c_4500_u32, 0x000c_4620] {
        code.push(0xb8);
        code.extend(command.to_le_bytes());
        code.push(0xa3);
        code.extend(0xfee0_0300_u32.to_le_bytes());
    }
    // Again: cmp word [0x2_0010], 254; jne again.
    code.extend([0x66, 0x81, 0x3d, 0x10, 0, 2, 0, 254, 0, 0x75, 0xf5]);
    code.extend(out(0x501, 7));
    code.extend(HALT);
    code.resize(62, 0x90);
    code.extend(OTHER);
    assert_eq!(run(&code, &["--vcpus", "255"]).0, 7);
}

#[test]
fn the_serial_port_echoes_what_comes_through_a_pipe() {
    // out dx, al; cmp al, 'q'; jne READ.
    let echo = [&READ[..], &[0xee, 0x3c, b'q', 0x75, 0xeb], &out(0x501, 1)].concat();
    let mut guest = Guest::start(&echo, &[]);
    // More than the port's buffer holds.
    let text = "x".repeat(1000) + "q";
    guest.child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let (status, output, _) = guest.end();
    assert_eq!((status, output), (1, text));
}

#[test]
fn the_serial_port_leads_to_a_file_or_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a,log");
    // In the value of a table's flag two commas stand for one.
    let flag = file.to_str().unwrap().replace(',', ",,");
    for _ in 0..2 {
        let (status, output, _) = run(&[say("said"), out(0x501, 3)].concat(), &["--serial", &flag]);
        assert_eq!((status, output.as_str()), (3, ""));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "saidsaid");
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let echo = [&READ[..], &[0xee, 0x3c, b'q', 0x75, 0xeb], &out(0x501, 1)].concat();
    let guest = Guest::start(&echo, &["--serial", &format!(",socket={}", socket.display())]);
    let (mut stream, _) = listener.accept().unwrap();
    let text = "x".repeat(1000) + "q";
    stream.write_all(text.as_bytes()).unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).unwrap();
    assert_eq!((guest.end().0, echoed), (1, text));
    // Nobody listens any more.
    drop(listener);
    let (status, _, words) = run(&HALT, &["--serial", &format!(",socket={}", socket.display())]);
    assert!(status == 2 && words.contains("could not open the serial port at"), "{words}");
}

#[test]
fn strings_and_wide_accesses_reach_ports_value_by_value() {
    // mov esi, text; mov ecx, 5; mov dx, 0x3f8; rep outsb; then wide accesses that no register has.
    let text = (CODE + 45).to_le_bytes();
    let length: [u8; 4] = [5, 0, 0, 0];
    let mut code = [&[0xbe][..], &text, &[0xb9], &length, &[0x66, 0xba, 0xf8, 3]].concat();
    code.extend([0xfc, 0xf3, 0x6e, 0xef, 0x66, 0xed]);
    // mov eax, [0xd0000000]: ones, as nothing is there. Its low byte less 0xfe is the status.
    code.extend([0xa1, 0, 0, 0, 0xd0, 0x2c, 0xfe, 0x66, 0xba, 0x01, 0x05, 0xee]);
    code.extend(HALT);
    code.resize(45, 0x90);
    code.extend(b"hello");
    assert_eq!(run(&code, &["--rng", "false"]).1, "hello");
    assert_eq!(run(&code, &[]).0, 1);
}

#[test]
fn a_reset_or_a_panic_starts_anew_where_asked() {
    starts_anew(&out(0x602, 1), "--on-reset", "the guest reset; it starts anew");
    starts_anew(&out(0x505, 1), "--on-panic", "the guest's kernel panicked; it starts anew");
}

/// Runs a guest that ends so twice.
fn starts_anew(end: &[u8], flag: &str, expected: &str) {
    // Says '>', reads a byte: 'r' ends it so, all else with a status.
    let jump = [0x3c, b'r', 0x75, u8::try_from(end.len()).unwrap()];
    let code = [&say(">")[..], &READ, &jump, end, &out(0x501, 9)].concat();
    let mut guest = Guest::start(&code, &[flag, "restart"]);
    let prompts = guest.written();
    let mut stdin = guest.child.stdin.take().unwrap();
    for key in [b"r", b"r", b"q"] {
        assert_eq!(receive(guest.child.id(), "a prompt", &prompts), b'>');
        stdin.write_all(key).unwrap();
    }
    let (status, _, words) = guest.end();
    assert_eq!(status, 9);
    assert_eq!(words.matches(expected).count(), 2, "{words}");
}

/// Whenever it comes: while a guest runs, while one ends, while the next is launched.
#[test]
fn a_guest_that_starts_anew_for_ever_can_be_ended() {
    for delay in 0..20 {
        let mut guest = Guest::start(
            &[&say(">")[..], &out(0x602, 1)].concat(),
            &["--on-reset", "restart", "--log", "off", "--stop-timeout", "0"],
        );
        // Taken until the end, or it would wait.
        let written = guest.written();
        for _ in 0..2 {
            assert_eq!(receive(guest.child.id(), "a prompt", &written), b'>');
        }
        thread::sleep(Duration::from_micros(97 * delay));
        let id = guest.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(guest.end().0, 123);
    }
}

#[test]
fn a_launch_that_fails_says_what_may_be_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, elf(&HALT, Start::Pvh)).unwrap();
    let casemate = env!("CARGO_BIN_EXE_casemate");
    // Too few open files for so many vCPUs: known before anything is created.
    let script = format!(
        "ulimit -n 100; exec {casemate} run --platform plain --memory 4M --vcpus 255 --kernel {}",
        kernel.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("(RLIMIT_NOFILE is 100), and the guest needs up to "), "{said}");
    let note =
        "\n  open files: only 100 open files: too few for large guests; raise the hard limit";
    assert!(said.contains(note), "{said}");
}

/// As the soft limit is on most systems for programs that cannot take more.
#[test]
fn more_files_are_opened_than_the_soft_limit_says() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, disk) = (folder.path().join("kernel"), folder.path().join("disk"));
    fs::write(&kernel, elf(&out(0x501, 7), Start::Pvh)).unwrap();
    fs::write(&disk, [0; 512]).unwrap();
    let script = format!(
        "ulimit -Sn 64; exec {} run --platform plain --memory 4M --kernel {} --disk {},queues=16 --vcpus 40",
        env!("CARGO_BIN_EXE_casemate"),
        kernel.display(),
        disk.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn bad_input_ends_with_2_before_kvm_is_opened() {
    let refused = |args: &[&str], words: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_casemate")).arg("run").args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    };
    let own = env!("CARGO_BIN_EXE_casemate");
    refused(&["--platform", "plain"], "kernel is missing; give a kernel");
    refused(&["--kernel", "/none"], "--kernel = \"/none\": No such file");
    refused(&["--kernel", own, "--platform", "plain"], "not an executable");
    let kind = "kernel = \"/etc/passwd\", which has to be a bzImage or an ELF file: neither";
    refused(&["--kernel", "/etc/passwd", "--platform", "plain"], kind);
    refused(&["--kernel", "/etc/passwd"], "--platform plain");
    refused(&["--disk", "a,speed=1", "--kernel", own], "unknown key `speed`");
    let absent = "--net[0].tap = \"no-such-tap\": there is no such interface; make one: ";
    refused(&["--net", "no-such-tap", "--kernel", own], absent);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.toml");
    fs::write(&file, format!("kernel = {own:?}\n[[net]]\ntap = \"lo\"\n")).unwrap();
    let file = file.to_str().unwrap();
    refused(&[file], &format!("{file}: net[0].tap = \"lo\": this interface is no tap"));
    refused(&["--net", "lo", "--kernel", own], "this interface is no tap");
    refused(&["--on-reset", "stop"], "possible values: exit, restart");
    refused(&["--log", "a=b=c", "--kernel", own], "no log filter");
}
