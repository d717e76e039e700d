//! Bare-metal guests of `guest/attacks.c`, and the processes that run them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use casemate_lab::Patience;
use casemate_test_support::process::guest_process;

/// A guest that runs.
pub(crate) struct Guest {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
}

/// The program of one attack, in `folder`.
pub(crate) fn program(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join("guest");
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-w", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-mno-red-zone"]);
    gcc.args(["-fcf-protection=none", "-nostdlib", "-static", "-no-pie"]);
    gcc.arg("-Wl,-Ttext=0x100000,--build-id=none,-e,start,-z,max-page-size=4096");
    gcc.arg(format!("-DATTACK={name}")).arg("-o").arg(&file);
    gcc.arg(format!("{here}/peers/guest/entry.S")).arg(format!("{here}/hostile/guest/attacks.c"));
    assert!(gcc.status().expect("gcc is there after tests/scripts/setup").success());
    file
}

/// `casemate run` with the program `name`, not started yet. `DIR` in flags is `folder`.
pub(crate) fn command(folder: &Path, name: &str, flags: &[&str]) -> Command {
    let kernel = program(folder, name);
    let disk = folder.join("disk");
    if !disk.exists() {
        File::create(&disk).unwrap().set_len(4 << 20).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command.args(["run", "--platform", "plain", "--memory", "128M"]);
    command.args(["--sandbox", "on", "--stop-timeout", "0", "--kernel"]).arg(kernel);
    let folder = folder.to_str().unwrap();
    command.args(flags.iter().map(|flag| flag.replace("DIR", folder)));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

impl Guest {
    /// Runs the attack; output and log go to files.
    pub(crate) fn attack(name: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path(), name, flags);
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let child = command.stdout(file("output")).stderr(file("log")).spawn().unwrap();
        Self { child, folder }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

/// Processor time of a guest's process so far, in ticks of a hundredth of a second; 0 once it has ended.
/// `started` is its parent.
pub(crate) fn processor_time(started: u32) -> u64 {
    let Some(process) = guest_process(started) else { return 0 };
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// A minute of work or sleep: no attack takes as long.
pub(crate) fn patience(started: &Child) -> Patience {
    Patience::new(started.id(), Duration::from_secs(60))
}
