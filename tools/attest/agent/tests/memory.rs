//! A process that holds a secret: locked in memory, and in no core file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use casemate_agent::{MemoryError, protect_memory};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, dumpable_behavior, getpid, getrlimit, getuid,
    kill_process, setrlimit,
};

/// The test binary runs itself; the copy, told so by the environment, ends by SIGABRT, which leaves a
/// core file.
const TOLD: &str = "MEMORY_TEST_PROTECT";

fn locked_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What the copy does: protects itself, or not, and aborts.
fn abort(protect: bool) {
    let hard = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: hard, maximum: hard }).unwrap();
    assert_eq!(locked_bytes(), 0);
    if protect {
        match protect_memory() {
            Ok(()) => {
                let before = locked_bytes();
                let secret = vec![1_u8; 4 << 20];
                assert!(before > 0 && locked_bytes() >= before + (4 << 20), "{before}");
                drop(secret);
            }
            // Whoever may not lock so much is told so.
            Err(error @ MemoryError::Lock(_)) => {
                assert!(!getuid().is_root(), "{error}");
                assert!(getrlimit(Resource::Memlock).current.is_some(), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
    kill_process(getpid(), Signal::ABORT).unwrap();
}

fn copy(protect: &str) -> ExitStatus {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg("a_protected_process_is_locked_and_leaves_no_core_file")
        .env(TOLD, protect)
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    status
}

#[test]
fn a_protected_process_is_locked_and_leaves_no_core_file() {
    if let Ok(protect) = std::env::var(TOLD) {
        return abort(protect == "yes");
    }
    assert!(!copy("yes").core_dumped());
    // Without protection there is a core file, where the limit allows one.
    let allowed = getrlimit(Resource::Core).maximum != Some(0);
    assert_eq!(copy("no").core_dumped(), allowed);
}

/// The agent asks for no secret that it cannot keep in memory.
#[test]
fn an_agent_that_cannot_lock_its_memory_ends() {
    let mut command = if getuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit"]);
        command
    } else {
        Command::new("prlimit")
    };
    let output = command
        .args(["--memlock=0:0", env!("CARGO_BIN_EXE_casemate-agent"), "run"])
        .args(["--secret", "a/b/c", "--any-broker", "--broker", "unix:/nowhere", "--", "true"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("could not lock") && text.contains("ulimit -l"), "{text}");
}
