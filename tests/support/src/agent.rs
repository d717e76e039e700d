//! The agent as guests have it: one static binary.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `casemate-agent` for guests, or finds it built: the profile `guest`, linked
/// statically.
///
/// # Errors
/// It does not build.
pub fn static_binary() -> Result<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let directory = PathBuf::from(root).join("target/agent");
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--profile=guest", "--locked", "-q", "-p", "casemate-agent"])
        // A target that is named keeps the flag away from build scripts and macros.
        .args(["--target", TARGET, "--target-dir"])
        .arg(&directory)
        .env("CARGO_BUILD_BUILD_DIR", &directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(root)
        .output()
        .context("could not run cargo")?;
    ensure!(
        output.status.success(),
        "casemate-agent does not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(directory.join(TARGET).join("guest/casemate-agent"))
}
