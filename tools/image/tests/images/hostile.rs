//! Hostile archives are refused with a message, and nothing is left.

use std::fs;

use casemate_image::{Limits, Selection};

use crate::archive::{Header, Layer, Tar, gzip, layout_files, oci_archive, zstd};
use crate::support::{Folder, list, message};

/// Refuses the layers, with a message that contains `expected`.
#[track_caller]
fn refused_with(layers: &[Layer], selection: &Selection, expected: &str) {
    let folder = Folder::new();
    fs::write(folder.path("image.tar"), oci_archive(layers)).unwrap();
    let error = folder.build_with(&folder.path("image.tar"), selection).unwrap_err();
    let message = message(&error);
    assert!(message.contains(expected), "{message}");
    assert_eq!(folder.left(), [""; 0], "{message}");
}

#[track_caller]
fn refused(tar: Vec<u8>, expected: &str) {
    refused_with(&[Layer::plain(tar)], &Selection::default(), expected);
}

fn header<'a>(path: &'a str, kind: u8, link: &'a str) -> Header<'a> {
    Header { path, kind, link, ..Header::default() }
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in ["../etc/passwd", "a/../../b", "a/..", ".."] {
        refused(Tar::new().file(path, b"").finish(), "`..`");
    }
    refused(Tar::new().file("/etc/passwd", b"").finish(), "absolute");
    refused(Tar::new().pax(&[("path", b"a\0b")]).file("x", b"").finish(), "null byte");
    let long = "n".repeat(256);
    refused(Tar::new().pax(&[("path", long.as_bytes())]).file("x", b"").finish(), "255 bytes");
    let long = "d/".repeat(2500);
    refused(Tar::new().pax(&[("path", long.as_bytes())]).file("x", b"").finish(), "4095 bytes");
    let deep = "d/".repeat(400);
    refused(
        Tar::new().pax(&[("path", deep.as_bytes())]).file("x", b"").finish(),
        "256 directories",
    );
}

#[test]
fn links_that_lead_out_are_refused() {
    let tar = Tar::new().symlink("evil", "/etc").file("evil/passwd", b"");
    refused(tar.finish(), "whose target is absolute");
    let tar = Tar::new().symlink("a/evil", "../..").file("a/evil/passwd", b"");
    refused(tar.finish(), "leads out of the image");
    refused(Tar::new().symlink("a/evil", "../../etc").finish(), "`../../etc` leads out");
    refused(
        Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").finish(),
        "40 symbolic",
    );
    for target in ["/etc/passwd", "../passwd", "missing", "folder", ""] {
        refused(
            Tar::new().directory("folder").hard_link("evil", target).finish(),
            "hard link's target",
        );
    }
    refused(Tar::new().symlink("empty", "").finish(), "target is empty");
}

#[test]
fn links_are_data_unless_a_path_passes_through_them() {
    let folder = Folder::new();
    let tar = Tar::new().symlink("a/up", "../x").symlink("b", "/etc/alternatives/b").finish();
    folder.build_layers(vec![tar]).unwrap();
    assert_eq!(list(&folder.output()).len(), 4);
}

#[test]
fn names_that_are_there_twice_are_refused() {
    refused(Tar::new().file("a", b"1").file("a", b"2").finish(), "twice");
    refused(Tar::new().file("a", b"1").file("./a", b"2").finish(), "twice");
    refused(Tar::new().file("a", b"1").directory("a").finish(), "twice");
    refused(Tar::new().file("a/b", b"1").file("a", b"2").finish(), "twice");
    refused(Tar::new().directory("a").directory("a/").finish(), "twice");
    refused(Tar::new().file("a", b"1").hard_link("a", "a").finish(), "twice");
    refused(Tar::new().directory("./").directory(".").finish(), "twice");
    refused(Tar::new().file("a", b"1").file("a/b", b"2").finish(), "not a directory");
}

#[test]
fn names_that_differ_in_case_are_refused_unless_allowed() {
    for (first, second) in [("a/Readme", "a/README"), ("\u{c4}", "\u{e4}")] {
        let tar = Tar::new().file(first, b"").file(second, b"").finish();
        refused(tar.clone(), "differ only in case");
        let folder = Folder::new();
        fs::write(folder.path("image.tar"), oci_archive(&[Layer::plain(tar)])).unwrap();
        let selection = Selection { case_collisions: true, ..Selection::default() };
        folder.build_with(&folder.path("image.tar"), &selection).unwrap();
    }
}

#[test]
fn malformed_whiteouts_are_refused() {
    for name in [".wh.", ".wh...", ".wh..", "a/.wh..wh.plnk", ".wh.a/b"] {
        refused(Tar::new().file(name, b"").finish(), "whiteout is malformed");
    }
    refused(Tar::new().file(".wh.a", b"content").finish(), "whiteout is malformed");
    refused(Tar::new().directory(".wh.a").finish(), "whiteout is malformed");
    refused(Tar::new().file("a", b"").hard_link(".wh.b", "a").finish(), "whiteout is malformed");
}

#[test]
fn huge_and_sparse_files_are_refused() {
    refused(Tar::new().member(&header("a", b'S', ""), b"").finish(), "sparse");
    let sparse = Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("a", b"");
    refused(sparse.finish(), "sparse");
    let huge = Tar::new().pax(&[("size", b"9000000000000000000")]).file("a", b"");
    refused(huge.finish(), "more than the limit");
    let huge = Tar::new().pax(&[("size", b"18446744073709551615")]).file("a", b"");
    refused(huge.finish(), "size");
    let limits = Limits { image_bytes: 1500, ..Limits::default() };
    let tar = Tar::new().file("a", &[1; 1000]).file("b", &[2; 1000]).finish();
    let selection = Selection { limits, ..Selection::default() };
    refused_with(&[Layer::plain(tar)], &selection, "--max-size");
}

#[test]
fn bombs_are_refused() {
    let zeros = Tar::new().file("a", &vec![0; 80 << 20]).finish();
    for stored in [gzip(&zeros), zstd(&zeros)] {
        let layer = Layer { diff_id: crate::archive::digits(&zeros), stored };
        refused_with(&[layer], &Selection::default(), "expands to more than 250 times");
    }
    let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
    let selection = Selection { limits, ..Selection::default() };
    refused_with(&[Layer::plain(zeros)], &selection, "limit of 1048576 bytes");
    let limits = Limits { inodes: 10, ..Limits::default() };
    let selection = Selection { limits, ..Selection::default() };
    let many = (0..20).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), b""));
    refused_with(&[Layer::plain(many.finish())], &selection, "more than 10 files");
    let limits = Limits { metadata_bytes: 10_000, ..Limits::default() };
    let selection = Selection { limits, ..Selection::default() };
    let large = Tar::new().pax(&[("SCHILY.xattr.user.a", &[7; 20_000])]).file("a", b"").finish();
    refused_with(&[Layer::plain(large)], &selection, "take more than 10000 bytes");
    refused(Tar::new().pax(&[("comment", &[b'c'; 2 << 20])]).file("a", b"").finish(), "1 MiB");
}

#[test]
fn truncated_layers_are_refused_wherever_they_end() {
    let whole = Tar::new().file("a", &[1; 700]).pax(&[("mtime", b"1")]).file("b", b"2").finish();
    let end = whole.len() - 1024;
    for len in (0..end).step_by(97).chain([512, end]) {
        refused(whole[..len].to_vec(), "truncated");
    }
    for compressed in [gzip(&whole), zstd(&whole)] {
        for len in [compressed.len() / 2, compressed.len() - 1] {
            let diff_id = crate::archive::digits(&whole);
            let layer = Layer { stored: compressed[..len].to_vec(), diff_id };
            refused_with(&[layer], &Selection::default(), "layer 1 is refused");
        }
    }
}

#[test]
fn malformed_headers_are_refused() {
    let good = Tar::new().file("a", b"content").finish();
    let mut bad = good.clone();
    bad[0] ^= 1;
    refused(bad, "checksum");
    let mut trailing = good;
    trailing.extend(Tar::new().file("hidden", b"").finish());
    refused(trailing, "follow the end");
    refused(Tar::new().member(&header("a", b'V', ""), b"").finish(), "unsupported type");
    refused(
        Tar::new().member(&header("a", b'5', ""), b"content").finish(),
        "has 7 bytes of content",
    );
    for records in
        [&b"5 a=\n"[..], b"9 path=b\n9 path=c\n", b"99 path=b\n", b"path=b\n", b"9 path=bb"]
    {
        let tar = Tar::new().member(&header("pax", b'x', ""), records).file("a", b"");
        // Only the first is well-formed.
        let expected = if records.starts_with(b"5 a") { continue } else { "extended header" };
        refused(tar.finish(), expected);
    }
    let global = Tar::new().member(&header("pax", b'g', ""), b"9 path=b\n").file("a", b"");
    refused(global.finish(), "global records");
    refused(Tar::new().pax(&[("mtime", b"-1")]).file("a", b"").finish(), "before 1970");
    refused(Tar::new().pax(&[("uid", b"4294967296")]).file("a", b"").finish(), "owner");
    refused(Tar::new().pax(&[("uid", b"1")]).finish(), "truncated");
    let device = Header { device: (5000, 1), ..header("a", b'3', "") };
    refused(Tar::new().member(&device, b"").finish(), "12 and 20 bits");
}

#[test]
fn attributes_that_the_image_cannot_have_are_refused() {
    let with =
        |name: &str, value: &[u8]| Tar::new().pax(&[(&format!("SCHILY.xattr.{name}"), value)]);
    refused(with("trusted.overlay.opaque", b"y").file("a", b"").finish(), "overlay");
    refused(with("com.apple.quarantine", b"y").file("a", b"").finish(), "stores only");
    refused(with("user.a", &[1; 65_600]).file("a", b"").finish(), "65536");
    refused(Tar::new().pax(&[("SCHILY.acl.access", b"user::rwx")]).file("a", b"").finish(), "ACLs");
}

#[test]
fn layers_that_differ_from_their_digests_are_refused() {
    let tar = Tar::new().file("a", b"content").finish();
    let layer = Layer { diff_id: "0".repeat(64), ..Layer::gzip(&tar) };
    refused_with(&[layer], &Selection::default(), "uncompressed layer");
    let mut files = layout_files(&[Layer::gzip(&tar)]);
    // The layer is the second blob; a byte of the header's time does not change what it unpacks to.
    files[1].1[4] ^= 1;
    let archive = files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes));
    let folder = Folder::new();
    fs::write(folder.path("image.tar"), archive.finish()).unwrap();
    let error = folder.build(&folder.path("image.tar")).unwrap_err();
    assert!(message(&error).contains("stored layer"), "{}", message(&error));
    assert_eq!(folder.left(), [""; 0]);
}

#[test]
fn failed_build_keeps_the_image_that_was_there() {
    let folder = Folder::new();
    folder.build_layers(vec![Tar::new().file("a", b"").finish()]).unwrap();
    let before = fs::read(folder.output()).unwrap();
    folder.build_layers(vec![Tar::new().file("../a", b"").finish()]).unwrap_err();
    assert_eq!(fs::read(folder.output()).unwrap(), before);
    assert_eq!(folder.left(), ["image"]);
}

#[test]
fn hostile_outer_archives_are_refused() {
    let cases = [
        (Tar::new().file("../oci-layout", b""), "leads out"),
        (Tar::new().file("/oci-layout", b""), "leads out"),
        (Tar::new().file("manifest.json", b"[]").file("Manifest.json", b"[]"), "twice"),
        (Tar::new().file("manifest.json", b"[]").file("manifest.json", b"[]"), "twice"),
        (Tar::new().symlink("manifest.json", "../x"), "leads out"),
        (Tar::new().symlink("manifest.json", "/etc/passwd"), "leads out"),
        (Tar::new().symlink("manifest.json", "manifest.json"), "does not lead to a file"),
        (Tar::new().member(&header("manifest.json", b'6', ""), b""), "neither a file"),
        (Tar::new().file("manifest.json", b"{"), "malformed"),
        (Tar::new().file("manifest.json", b"[]"), "no image matches"),
        (Tar::new().file("other", b""), "is not an OCI layout"),
    ];
    for (tar, expected) in cases {
        let folder = Folder::new();
        fs::write(folder.path("image.tar"), tar.finish()).unwrap();
        let error = folder.build(&folder.path("image.tar")).unwrap_err();
        assert!(message(&error).contains(expected), "{}", message(&error));
        assert_eq!(folder.left(), [""; 0]);
    }
    let folder = Folder::new();
    let archive = oci_archive(&[Layer::plain(Tar::new().finish())]);
    fs::write(folder.path("image.tar"), &archive[..archive.len() / 2]).unwrap();
    let error = folder.build(&folder.path("image.tar")).unwrap_err();
    assert!(message(&error).contains("truncated"), "{}", message(&error));
    fs::write(folder.path("image.tar"), gzip(&archive)).unwrap();
    let error = folder.build(&folder.path("image.tar")).unwrap_err();
    assert!(message(&error).contains("gunzip"), "{}", message(&error));
    drop(Tar::new().unfinished());
}
