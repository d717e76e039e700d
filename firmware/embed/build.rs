//! Builds the firmware image, with this crate.

mod recipe;

use std::env;
use std::path::PathBuf;

fn main() {
    let embed = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let firmware = embed.parent().expect("embed lies in firmware");
    let root = firmware.parent().expect("firmware lies in the workspace");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for source in ["src", "image"] {
        println!("cargo::rerun-if-changed={}", firmware.join(source).display());
    }
    println!("cargo::rerun-if-changed=recipe.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    recipe::build(root, &out);
}
