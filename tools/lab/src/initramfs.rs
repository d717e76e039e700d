//! Archives that Linux unpacks as its first file system.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst ("newc").

use std::collections::BTreeMap;

/// What stands at a path.
enum Entry {
    Directory,
    File { mode: u32, bytes: Vec<u8> },
    Symlink { target: String },
    Character { major: u32, minor: u32 },
}

/// A cpio archive in the making. The same contents give the same bytes.
#[derive(Default)]
pub struct Initramfs {
    /// By path, so that parents come before what they hold.
    entries: BTreeMap<String, Entry>,
}

const S_IFDIR: u32 = 0o04_0000;
const S_IFCHR: u32 = 0o02_0000;
const S_IFREG: u32 = 0o10_0000;
const S_IFLNK: u32 = 0o12_0000;

impl Initramfs {
    /// An archive with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty directory, and those above it.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        self.add(path, Entry::Directory)
    }

    /// A regular file; `mode` is its permissions.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.add(path, Entry::File { mode, bytes: bytes.into() })
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path, Entry::Symlink { target: target.into() })
    }

    /// A character device.
    pub fn character(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        self.add(path, Entry::Character { major, minor })
    }

    /// The archive's bytes, not compressed.
    pub fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1_u32..).zip(&self.entries) {
            let empty: &[u8] = &[];
            let (mode, data, device) = match entry {
                Entry::Directory => (S_IFDIR | 0o755, empty, (0, 0)),
                Entry::File { mode, bytes } => (S_IFREG | mode, bytes.as_slice(), (0, 0)),
                Entry::Symlink { target } => (S_IFLNK | 0o777, target.as_bytes(), (0, 0)),
                Entry::Character { major, minor } => (S_IFCHR | 0o600, empty, (*major, *minor)),
            };
            write_entry(&mut out, number, path, mode, data, device);
        }
        write_entry(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0));
        out
    }

    fn add(&mut self, path: &str, entry: Entry) -> &mut Self {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default();
            self.entries.entry(parent.into()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.into(), entry);
        self
    }
}

fn write_entry(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    data: &[u8],
    device: (u32, u32),
) {
    let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
    // uid, gid and time are zero: whoever builds an image gets the same one.
    let header = format!(
        "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        0,
        0,
        0,
        data.len(),
        0,
        0,
        device.0,
        device.1,
        path.len() + 1,
        0
    );
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

/// Headers and data start at multiples of four.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// busybox's cpio reads what is written here: an implementation that is not ours.
    #[test]
    fn another_program_reads_the_archive() {
        let mut archive = Initramfs::new();
        archive
            .file("/init", 0o755, "#!/bin/sh\n")
            .file("a/b/odd", 0o644, "12345")
            .symlink("bin/sh", "busybox")
            .character("dev/console", 5, 1)
            .directory("proc");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        std::fs::write(&path, archive.build()).unwrap();
        let busybox = crate::packages::Packages::open().unwrap().busybox().unwrap();
        let mut command = Command::new(busybox);
        command.args(["cpio", "-tv", "-F"]).arg(path);
        let listed = crate::process::output(&mut command).unwrap();
        let lines: Vec<_> = listed.lines().map(fields).collect();
        assert_eq!(
            lines,
            [
                "drwxr-xr-x 0 a",
                "drwxr-xr-x 0 a/b",
                "-rw-r--r-- 5 a/b/odd",
                "drwxr-xr-x 0 bin",
                "lrwxrwxrwx 0 bin/sh -> busybox",
                "drwxr-xr-x 0 dev",
                "crw------- 0 dev/console",
                "-rwxr-xr-x 10 init",
                "drwxr-xr-x 0 proc",
            ]
        );
    }

    /// Mode, size and name; not owner and time.
    fn fields(line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        format!("{} {} {}", words[0], words[2], words[5..].join(" "))
    }
}
