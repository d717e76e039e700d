//! Other programs read our images: Linux, `fsck.erofs` of erofs-utils, `veritysetup` of cryptsetup.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use casemate_image::Built;
use casemate_image::verity::Verity;

use crate::archive::{Header, Tar, digits};
use crate::directories::command;
use crate::support::{Folder, list};

/// `veritysetup verify` accepts an image.
#[track_caller]
pub(crate) fn veritysetup(image: &Path, verity: &Verity) {
    let image = image.to_str().unwrap();
    let offset = format!("--hash-offset={}", verity.hash_offset());
    command("/usr/sbin/veritysetup", &["verify", image, image, &verity.root_hash_hex(), &offset]);
}

/// `fsck.erofs` accepts an image, and extracts it.
#[track_caller]
pub(crate) fn extract(image: &Path, target: &Path) {
    let extract = format!("--extract={}", target.display());
    command("/usr/bin/fsck.erofs", &[&extract, "--preserve", image.to_str().unwrap()]);
}

/// Results of stat by path: mode, links, owners, time; and content, link target or device.
type Found = BTreeMap<String, (u32, u64, u32, u32, i64, String)>;

fn stat(root: &Path, path: &str, times: bool, found: &mut Found) {
    let full = root.join(path);
    let metadata = full.symlink_metadata().unwrap();
    let content = if metadata.is_file() {
        digits(&fs::read(&full).unwrap())
    } else if metadata.is_symlink() {
        fs::read_link(&full).unwrap().into_os_string().into_string().unwrap()
    } else {
        metadata.rdev().to_string()
    };
    let mtime = if times { metadata.mtime() } else { 0 };
    let (mode, links) = (metadata.mode(), metadata.nlink());
    let entry = (mode, links, metadata.uid(), metadata.gid(), mtime, content);
    found.insert(path.to_owned(), entry);
    if metadata.is_dir() {
        for entry in fs::read_dir(&full).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            stat(root, &path, times, found);
        }
    }
}

fn stats(root: &Path, times: bool) -> Found {
    let mut found = Found::new();
    stat(root, "", times, &mut found);
    found
}

/// Files of all kinds and lengths around those of a block, and more names than a block holds.
fn layer() -> Vec<u8> {
    let of = |path, kind, device| Header { path, kind, device, owner: (1, 2), ..Header::default() };
    let mut tar = Tar::new()
        .directory("./")
        .member(&of("null", b'3', (1, 3)), b"")
        .member(&of("loop", b'4', (7, 300)), b"")
        .member(&of("pipe", b'6', (0, 0)), b"")
        .symlink("link", &"t".repeat(200))
        .symlink("long-link", &"t/".repeat(2000)[..3999])
        .file("set-user", b"");
    for len in [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 70_000, 300_000] {
        let header = Header { mode: 0o4751, owner: (70_000, 3), mtime: len, ..Header::default() };
        let content: Vec<u8> = (0..len).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
        let path = format!("lengths/{len}");
        let xattrs = [("SCHILY.xattr.user.name", &b"value"[..])];
        let tar_with = if len % 2 == 0 { tar.pax(&xattrs) } else { tar };
        tar = tar_with.member(&Header { path: &path, ..header }, &content);
    }
    for number in 0..700 {
        tar = tar.file(&format!("many/{number}-{}", "n".repeat(number % 90)), b"x");
    }
    for name in ["!", "-", ".a", "..b", "...", "\u{fc}"] {
        tar = tar.file(&format!("dots/{name}"), name.as_bytes());
    }
    let large = vec![b'v'; 30_000];
    tar = tar
        .pax(&[("SCHILY.xattr.user.large", &large), ("SCHILY.xattr.user.empty", b"")])
        .directory("large");
    tar = tar.pax(&[("SCHILY.xattr.trusted.t", b"1")]).symlink("attributed", "link");
    tar.hard_link("again", "lengths/70000").hard_link("many/link-again", "link").finish()
}

fn built() -> (Folder, Built) {
    let folder = Folder::new();
    let built = folder.build_layers(vec![layer()]).unwrap();
    (folder, built)
}

#[test]
fn fsck_and_veritysetup_accept_the_image_and_extract_what_tar_does() {
    let (folder, built) = built();
    let (expected, extracted) = (folder.path("expected"), folder.path("extracted"));
    fs::create_dir(&expected).unwrap();
    fs::write(folder.path("layer.tar"), layer()).unwrap();
    let (tar, target) = (folder.path("layer.tar"), expected.to_str().unwrap());
    command("tar", &["-xpf", tar.to_str().unwrap(), "--numeric-owner", "-C", target]);
    extract(&folder.output(), &extracted);
    veritysetup(&folder.output(), &built.verity);
    let (mut ours, mut theirs) = (stats(&extracted, false), stats(&expected, false));
    // erofs-utils 1.5 makes a copy for each hard link, and loses set-user-ID, as it changes the owner last.
    // The test with Linux's own driver compares both.
    for found in [&mut ours, &mut theirs] {
        for entry in found.values_mut() {
            entry.0 &= !0o6000;
            entry.1 = 0;
        }
    }
    assert_eq!(ours, theirs);
}

#[test]
fn linux_mounts_the_image_and_sees_what_tar_extracts() {
    let (folder, _) = built();
    let (expected, mounted) = (folder.path("expected"), folder.path("mounted"));
    fs::create_dir(&expected).unwrap();
    fs::create_dir(&mounted).unwrap();
    fs::write(folder.path("layer.tar"), layer()).unwrap();
    let (tar, target) = (folder.path("layer.tar"), expected.to_str().unwrap());
    command(
        "tar",
        &[
            "--xattrs",
            "--xattrs-include=*",
            "-xpf",
            tar.to_str().unwrap(),
            "--numeric-owner",
            "-C",
            target,
        ],
    );
    let at = mounted.to_str().unwrap();
    command("mount", &["-t", "erofs", "-o", "loop,ro", folder.output().to_str().unwrap(), at]);
    let seen = std::panic::catch_unwind(|| {
        let listed = list(&folder.output());
        for (path, file) in &listed {
            let attributes: Vec<_> = file.xattrs.iter().map(|xattr| xattr.value.to_vec()).collect();
            let values: Vec<_> = file
                .xattrs
                .iter()
                .map(|xattr| {
                    let mut value = vec![0; 65_536];
                    let len =
                        rustix::fs::lgetxattr(mounted.join(path), &xattr.name[..], &mut value[..]);
                    value.truncate(len.unwrap());
                    value
                })
                .collect();
            assert_eq!(values, attributes, "{path}");
        }
        stats(&mounted, true)
    });
    command("umount", &[at]);
    let (seen, expected) = (seen.unwrap(), stats(&expected, true));
    // Directories that the archive does not list have no time of their own.
    let differs = |path: &&String| !matches!(path.as_str(), "lengths" | "many" | "dots");
    let of = |found: &Found| -> Found {
        found.keys().filter(differs).map(|path| (path.clone(), found[path].clone())).collect()
    };
    assert_eq!(of(&seen), of(&expected));
    assert_eq!(seen.len(), expected.len());
}

#[test]
fn root_directory_alone_is_an_image() {
    let folder = Folder::new();
    let built = folder.build_layers(vec![]).unwrap();
    veritysetup(&folder.output(), &built.verity);
    extract(&folder.output(), &folder.path("extracted"));
    assert_eq!(built.verity.data_blocks, 2);
}
