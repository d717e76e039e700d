//! `casemate firmware`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

/// Write Casemate's guest firmware into a file
///
/// The image is part of this program. A guest that it starts is measured with the digests of its
/// kernel, initial RAM disk and command line: see casemate measure snp --vmm casemate.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file; an existing one is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image for development, which says on the serial port what it does
    #[arg(long)]
    log: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    fs::write(&args.file, casemate_firmware_image::image(args.log))
        .with_context(|| format!("could not write the firmware to {}", args.file.display()))?;
    Ok(ExitCode::SUCCESS)
}
