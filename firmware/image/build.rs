//! Builds the firmware image, with this crate, and fails if it is not the one that was committed.

mod committed;
mod recipe;

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable = |name| env::var_os(name).expect("cargo sets it");
    let image = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let firmware = image.parent().expect("image lies in firmware");
    let root = firmware.parent().expect("firmware lies in the workspace");
    let out = PathBuf::from(variable("OUT_DIR"));
    for source in ["logic/src", "image/guest"] {
        println!("cargo::rerun-if-changed={}", firmware.join(source).display());
    }
    let committed = committed::EDITIONS.map(|(_, digest)| digest);
    for file in ["recipe.rs", "committed.rs"].into_iter().chain(committed) {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=RUSTC");
    recipe::build(root, &out);

    let version = Command::new(variable("RUSTC")).arg("--version").output();
    let version = version.map(|output| output.stdout).unwrap_or_default();
    let version = String::from_utf8_lossy(&version);
    if let Some(refusal) = committed::refusal(&out, &image, version.trim()) {
        eprintln!("{refusal}");
        std::process::exit(1);
    }
}
