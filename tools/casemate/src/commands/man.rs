//! `casemate man`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;

/// Write man pages to a directory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory; created if missing
    directory: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let directory = &args.directory;
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(crate::Cli::command(), directory))
        .with_context(|| format!("could not write man pages into {}", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
