//! Runs a program, and ends it when it has used its limit of work and sleep: `within SECONDS PROGRAM [ARGUMENT]...`.
//! Unlike timeout(1) it does not count the time in which the program waits for a processor. The exit status is that of the
//! program, or 124.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use casemate_lab::Patience;

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let seconds = arguments.next().and_then(|text| text.to_str()?.parse().ok());
    let seconds = seconds.context("usage: within SECONDS PROGRAM [ARGUMENT]...")?;
    let program = arguments.next().context("no program is named")?;
    let name = program.to_string_lossy().into_owned();
    let mut child = Command::new(program)
        .args(arguments)
        .spawn()
        .with_context(|| format!("could not start {name}"))?;
    let mut patience = Patience::new(child.id(), Duration::from_secs(seconds));
    loop {
        if let Some(status) = child.try_wait()? {
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into());
        }
        if patience.is_over() {
            eprintln!("within: {name} used its limit of {seconds} seconds and is ended");
            child.kill()?;
            child.wait()?;
            return Ok(124.into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
