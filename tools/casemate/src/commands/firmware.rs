//! `casemate firmware`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

/// Write Casemate's guest firmware to a file
///
/// The image is built into this program. Its measurement includes the digests of kernel, initial RAM disk and
/// command line: see casemate measure snp --vmm casemate.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// File to write; an existing file is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write the development image, which logs to the serial port
    #[arg(long)]
    log: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    fs::write(&args.file, casemate_firmware_image::image(args.log))
        .with_context(|| format!("could not write the firmware to {}", args.file.display()))?;
    Ok(ExitCode::SUCCESS)
}
