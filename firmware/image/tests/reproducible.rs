//! The measurement says something only if everybody can make the bytes that it is of.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "../recipe.rs"]
mod recipe;

use std::fs;
use std::path::Path;

use casemate_firmware_image::{IMAGE, LOGGING_IMAGE};

/// Another directory, and another environment: a build script's has the profile and its flags, a
/// test's has not.
#[test]
fn another_directory_and_environment_make_the_same_images() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let other = tempfile::tempdir().unwrap();
    for folder in ["firmware/logic/src", "firmware/image/guest"] {
        let target = other.path().join(folder);
        fs::create_dir_all(&target).unwrap();
        for file in fs::read_dir(root.join(folder)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    }
    let out = tempfile::tempdir().unwrap();
    recipe::build(other.path(), out.path());
    for (name, image) in [("firmware.bin", IMAGE), ("firmware-log.bin", LOGGING_IMAGE)] {
        assert!(fs::read(out.path().join(name)).unwrap() == image, "{name}: another image");
    }
}
