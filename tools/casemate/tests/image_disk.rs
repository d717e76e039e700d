//! `casemate image`: disks are built, described and verified.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn image(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command.current_dir(folder).arg("image").args(args).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A folder with a root file system `root`, and the disk of it.
fn built() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("root/etc")).unwrap();
    fs::write(folder.path().join("root/etc/motd"), "hello ".repeat(5000)).unwrap();
    let output =
        image(folder.path(), &["build", "root", "--all-root", "--output", "disk", "--json"]);
    let built = json(&output);
    assert_eq!(built["image"]["kind"], "directory");
    let root_hash = built["root_hash"].as_str().unwrap().to_owned();
    let bytes = fs::metadata(folder.path().join("disk")).unwrap().len();
    assert_eq!((root_hash.len(), built["bytes"].as_u64()), (64, Some(bytes)));
    (folder, root_hash)
}

#[test]
fn disk_is_verified_by_root_hash_and_by_image() {
    let (folder, root_hash) = built();
    let described = json(&image(folder.path(), &["inspect", "disk", "--json"]));
    assert_eq!(described["root_hash"], root_hash.as_str());
    for expected in [&["--root-hash", &root_hash][..], &["--image", "root", "--all-root"]] {
        let output = image(folder.path(), &[&["verify", "disk", "--json"], expected].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(json(&output)["root_hash_checked"], true);
    }
    let other = "0".repeat(64);
    let output = image(folder.path(), &["verify", "disk", "--root-hash", &other]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&other), "{output:?}");
}

#[test]
fn changed_byte_is_reported_with_its_block() {
    let (folder, root_hash) = built();
    let disk = folder.path().join("disk");
    let mut bytes = fs::read(&disk).unwrap();
    bytes[2 * 4096 + 7] ^= 1;
    fs::write(&disk, bytes).unwrap();
    let output = image(folder.path(), &["verify", "disk", "--root-hash", &root_hash]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("data block 2 (byte 8192) does not match"), "{text}");
}

#[test]
fn refused_image_ends_with_2_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("image.tar"), "this is not an archive ".repeat(100)).unwrap();
    let output = image(folder.path(), &["build", "image.tar", "--output", "disk"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("could not build a disk from image.tar: "), "{text}");
    assert!(text.contains("wrong checksum"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let output = image(folder.path(), &["verify", "image.tar"]);
    assert_eq!(output.status.code(), Some(1), "it is not a disk");
    let output = image(folder.path(), &["verify", "missing"]);
    assert_eq!(output.status.code(), Some(2));
}
