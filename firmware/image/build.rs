//! Builds the firmware image, with this crate.

mod recipe;

use std::env;
use std::path::PathBuf;

fn main() {
    let image = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let firmware = image.parent().expect("image lies in firmware");
    let root = firmware.parent().expect("firmware lies in the workspace");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for source in ["logic/src", "image/guest"] {
        println!("cargo::rerun-if-changed={}", firmware.join(source).display());
    }
    println!("cargo::rerun-if-changed=recipe.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    recipe::build(root, &out);
}
