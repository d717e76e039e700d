//! `casemate completions`

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

/// Print a completion script for a shell
///
/// For bash, for example: casemate completions bash > /etc/bash_completion.d/casemate
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut command = crate::Cli::command();
    clap_complete::generate(args.shell, &mut command, "casemate", &mut super::output());
    Ok(ExitCode::SUCCESS)
}
