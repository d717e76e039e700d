//! Guests of Debian's kernels for tests of `casemate run` in an emulated host.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use casemate_lab::cache::Cache;
use casemate_lab::guest::{MODULES, initramfs};
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, Output, require};
use casemate_test_support::tiny;

/// A kernel of Debian's and an initramfs for it, in a directory that the emulated host sees.
pub(crate) struct Guest {
    folder: tempfile::TempDir,
}

impl Guest {
    /// `script` is what the guest does.
    pub(crate) fn new(series: &str, script: &str) -> Self {
        Self::with_files(series, script, &[])
    }

    /// With programs of the test's own, at the root of the guest's file system and beside its files.
    pub(crate) fn with_files(series: &str, script: &str, programs: &[(&str, &[u8])]) -> Self {
        let cache = Cache::open().unwrap();
        let packages = Packages::open().unwrap();
        let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
        let wanted: Vec<_> =
            MODULES.iter().copied().chain(["pvpanic-mmio", "button", "evdev"]).collect();
        let modules = kernel.modules(&wanted).unwrap();
        let mut image = initramfs(&packages, &modules, script).unwrap();
        image.file("bin/exit-with", 0o755, tiny::exit_with_digit());
        // Not in /tmp: the emulated host has one of its own.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, program) in programs {
            image.file(name, 0o755, *program);
            fs::write(path(name), program).unwrap();
            fs::set_permissions(path(name), Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(path("initrd"), image.build()).unwrap();
        fs::copy(&kernel.image, path("vmlinuz")).unwrap();
        fs::copy(kernel.vmlinux(&cache).unwrap(), path("vmlinux")).unwrap();
        Self { folder }
    }

    /// A file beside its own, which the emulated host can write.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command that runs it; `cmdline` goes behind what all have.
    pub(crate) fn command(&self, kernel: &str, cmdline: &str, flags: &str) -> String {
        let (casemate, folder) = (env!("CARGO_BIN_EXE_casemate"), self.folder.path().display());
        format!(
            "{casemate} run --platform plain --kernel {folder}/{kernel} --initrd {folder}/initrd \
             --cmdline 'console=ttyS0 quiet panic=-1 {cmdline}' {flags}"
        )
    }

    /// Runs a script in an emulated host; `None` where there is none.
    pub(crate) fn in_lab(&self, script: &str) -> Option<Output> {
        let lab = lab()?.share(self.folder.path());
        Some(lab.run(&["sh", "-c", script]).unwrap())
    }
}

/// The emulated host, if this machine has it.
pub(crate) fn lab() -> Option<casemate_lab::Lab> {
    Some(require(Host::Kvm)?.timeout(Duration::from_secs(400)))
}

/// What follows a word of the guest's, up to the end of the line.
pub(crate) fn said<'a>(console: &'a str, word: &str) -> &'a str {
    let line = console.lines().find_map(|line| line.trim_end().strip_prefix(word));
    line.unwrap_or_else(|| panic!("no {word}: {console}"))
}

/// Bytes of which no two sectors are the same.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| u8::try_from(at * at % 251).unwrap()).collect()
}

/// SHA-256, as `sha256sum` writes it.
pub(crate) fn sum(bytes: &[u8]) -> String {
    let sum = <sha2::Sha256 as sha2::Digest>::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A program of C, without libraries.
pub(crate) fn compile(source: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("program.c"), folder.path().join("program"));
    fs::write(&from, source).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-static", "-D_GNU_SOURCE", "-o"]).arg(&to).arg(from);
    assert!(gcc.status().expect("gcc is there after tests/scripts/setup").success());
    fs::read(to).unwrap()
}
