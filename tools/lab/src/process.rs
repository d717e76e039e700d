//! Tools of this machine that are run for their effect or their output.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

/// A tool that could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not there, or may not be run.
    #[error("running {program} failed")]
    Start {
        /// Which one.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program ended with another status than 0.
    #[error("{command} ended with {status}:\n{output}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// In words.
        status: String,
        /// The last lines of what it wrote.
        output: String,
    },
}

/// Runs a program to its end and gives its standard output; one that fails is an error that has the
/// last lines it wrote.
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String, ProcessError> {
    output(Command::new(program).args(arguments))
}

/// As [`run`], for a command that is made up elsewhere.
pub(crate) fn output(command: &mut Command) -> Result<String, ProcessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Their messages are shown and searched, so they must not depend on the user's language.
    let result = command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).output();
    let result = result.map_err(|source| ProcessError::Start { program, source })?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if result.status.success() {
        return Ok(stdout);
    }
    let written = stdout + &String::from_utf8_lossy(&result.stderr);
    Err(ProcessError::Failed {
        command: words(command),
        status: result.status.to_string(),
        output: last_lines(&written, 12),
    })
}

fn words(command: &Command) -> String {
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    std::iter::once(command.get_program().to_string_lossy())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
