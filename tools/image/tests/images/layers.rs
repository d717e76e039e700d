//! Layers upon layers: replacement, whiteouts, links (OCI image specification, "Image Layer Filesystem
//! Changeset").

use casemate_image::erofs::FileKind;
use casemate_image::tree::Device;

use crate::archive::{Header, Tar, digits};
use crate::support::{Folder, list, paths};

#[test]
fn upper_layer_replaces_files_and_keeps_siblings() {
    let folder = Folder::new();
    let lower = Tar::new().directory("a").file("a/x", b"old").file("a/y", b"kept").finish();
    let header = Header { path: "a/x", mode: 0o4755, owner: (7, 8), mtime: 5, ..Header::default() };
    let upper = Tar::new().member(&header, b"new").finish();
    folder.build_layers(vec![lower, upper]).unwrap();
    let files = list(&folder.output());
    assert_eq!(files.keys().collect::<Vec<_>>(), ["", "a", "a/x", "a/y"]);
    let file = &files["a/x"];
    assert_eq!((file.mode, file.owner, file.mtime), (0o4755, (7, 8), 5));
    assert_eq!(file.content, Some(digits(b"new")));
    assert_eq!(files["a"].mtime, 1_700_000_000, "the directory is the lower layer's");
}

#[test]
fn whiteout_removes_files_of_lower_layers_only() {
    let lower = Tar::new().file("a/x", b"").file("a/y", b"").file("b/c/d", b"").finish();
    for order in [false, true] {
        let file = |tar: Tar| tar.file("a/x", b"again");
        let whiteout = |tar: Tar| tar.file("a/.wh.x", b"").file("a/.wh.y", b"").file(".wh.b", b"");
        let upper = if order { whiteout(file(Tar::new())) } else { file(whiteout(Tar::new())) };
        assert_eq!(paths(vec![lower.clone(), upper.finish()]), ["a", "a/x"]);
    }
}

#[test]
fn opaque_whiteout_hides_all_siblings_of_lower_layers() {
    let lower = Tar::new().file("a/x", b"").file("a/b/y", b"").file("c", b"").finish();
    for order in [false, true] {
        let opaque = |tar: Tar| tar.file("a/.wh..wh..opq", b"");
        let file = |tar: Tar| tar.file("a/b/z", b"");
        let upper = if order { file(opaque(Tar::new())) } else { opaque(file(Tar::new())) };
        assert_eq!(paths(vec![lower.clone(), upper.finish()]), ["a", "a/b", "a/b/z", "c"]);
    }
}

#[test]
fn order_of_members_does_not_matter() {
    let lower = || {
        let header = Header { path: "a", kind: b'5', mode: 0o700, ..Header::default() };
        Tar::new().member(&header, b"").file("a/x", b"").finish()
    };
    let builds = [true, false].map(|first| {
        let folder = Folder::new();
        let upper = if first {
            Tar::new().file(".wh.a", b"").file("a/y", b"")
        } else {
            Tar::new().file("a/y", b"").file(".wh.a", b"")
        };
        let built = folder.build_layers(vec![lower(), upper.finish()]).unwrap();
        assert_eq!(list(&folder.output())["a"].mode, 0o755, "the lower directory is gone");
        built.verity.root_hash
    });
    assert_eq!(builds[0], builds[1]);
}

#[test]
fn whiteout_of_a_missing_file_is_nothing() {
    assert_eq!(paths(vec![Tar::new().file(".wh.a", b"").file("b/c/.wh.d", b"").finish()]), [""; 0]);
}

#[test]
fn file_replaces_directory_and_directory_replaces_link() {
    let lower = Tar::new().file("a/x", b"").directory("t").symlink("l", "t").finish();
    let upper = Tar::new().file("a", b"now a file").directory("l").file("l/in", b"").finish();
    assert_eq!(paths(vec![lower, upper]), ["a", "l", "l/in", "t"]);
}

#[test]
fn paths_follow_links_within_the_image() {
    let lower = Tar::new().directory("usr/bin").symlink("bin", "usr/bin").finish();
    let upper = Tar::new().file("bin/sh", b"").file("bin/.wh.none", b"").finish();
    assert_eq!(paths(vec![lower, upper]), ["bin", "usr", "usr/bin", "usr/bin/sh"]);
}

#[test]
fn hard_links_share_an_inode_across_layers_until_one_is_replaced() {
    let folder = Folder::new();
    let first = Tar::new().file("a", b"shared").hard_link("b", "a").finish();
    let second = Tar::new().hard_link("c", "./b").finish();
    let third = Tar::new().file("a", b"apart").finish();
    folder.build_layers(vec![first, second, third]).unwrap();
    let files = list(&folder.output());
    assert_eq!([files["a"].links, files["b"].links, files["c"].links], [1, 2, 2]);
    assert_eq!(files["c"].content, Some(digits(b"shared")));
    assert_eq!(files["a"].content, Some(digits(b"apart")));
}

#[test]
fn devices_pipes_attributes_and_long_names_arrive() {
    let folder = Folder::new();
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(255));
    let device = |path, kind, device| Header { path, kind, device, ..Header::default() };
    let tar = Tar::new()
        .member(&device("null", b'3', (1, 3)), b"")
        .member(&device("disk", b'4', (259, 70_000)), b"")
        .member(&device("pipe", b'6', (0, 0)), b"")
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"3000000000"),
            ("mtime", b"1234567890.987654321"),
            ("SCHILY.xattr.user.k", b"v\0=\n"),
            ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0]),
            ("LIBARCHIVE.creationtime", b"1"),
        ])
        .file("short", b"content");
    folder.build_layers(vec![tar.finish()]).unwrap();
    let files = list(&folder.output());
    assert_eq!(files["null"].kind, FileKind::Character(Device { major: 1, minor: 3 }));
    assert_eq!(files["disk"].kind, FileKind::Block(Device { major: 259, minor: 70_000 }));
    assert_eq!(files["pipe"].kind, FileKind::Fifo);
    let file = &files[&long];
    assert_eq!((file.owner.0, file.mtime), (3_000_000_000, 1_234_567_890));
    let names: Vec<_> =
        file.xattrs.iter().map(|xattr| xattr.name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["security.capability", "user.k"]);
    assert_eq!(*file.xattrs[1].value, *b"v\0=\n");
}

#[test]
fn gnu_long_names_and_ustar_prefixes_are_read() {
    let long = format!("{}/file", "long/".repeat(40));
    let tar = Tar::new()
        .member(&Header { path: "././@LongLink", kind: b'L', ..Header::default() }, long.as_bytes())
        .file("cut", b"1")
        .member(&Header { path: "././@LongLink", kind: b'K', ..Header::default() }, b"target\0")
        .symlink("link", "cut");
    let mut bytes = tar.file("name", b"2").finish();
    // The last member gets a prefix: its header is before its content and the end.
    let at = bytes.len() - 1024 - 1024;
    bytes[at + 345..at + 351].copy_from_slice(b"prefix");
    let sum: u32 = b"prefix".iter().map(|&byte| u32::from(byte)).sum();
    let old =
        u32::from_str_radix(std::str::from_utf8(&bytes[at + 148..at + 154]).unwrap(), 8).unwrap();
    bytes[at + 148..at + 154].copy_from_slice(format!("{:06o}", old + sum).as_bytes());
    let folder = Folder::new();
    folder.build_layers(vec![bytes]).unwrap();
    let files = list(&folder.output());
    assert_eq!(files["link"].kind, FileKind::Symlink(b"target".to_vec()));
    assert!(files.contains_key("prefix/name") && files.contains_key(&long.replace("//", "/")));
}
