//! Building the emulator and the TDX host's kernel from Debian's sources.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{EmulatorError, PATCH, TDX_KERNEL_CONFIG, make_executable};
use crate::cache::CacheError;
use crate::packages::Packages;
use crate::process::{self, ProcessError};
use crate::progress::{self, say};

const EMULATOR: &str = "the emulator";
pub(super) const EMULATOR_NEEDS: &[&str] = &[
    "build-essential",
    "pkg-config",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libssl-dev",
    "libfdt-dev",
    "libattr1-dev",
    "zlib1g-dev",
    "flex",
    "bison",
    "ninja-build",
    "python3-venv",
    "python3-pip",
    "python3-distlib",
    "xz-utils",
];
const KERNEL: &str = "the TDX host's kernel";
pub(super) const KERNEL_NEEDS: &[&str] =
    &["build-essential", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils"];

/// Debian's QEMU source, patched, built for x86-64 machines only, to `part`.
pub(super) fn emulator(packages: &Packages, part: &Path) -> Result<(), EmulatorError> {
    let mut build = Build::start(EMULATOR, EMULATOR_NEEDS, part)?;
    let sources = packages.source(&"qemu/trixie".parse()?)?;
    let tarball = only(&sources, |name| name.contains(".orig.tar."), "tarball")?;
    build.say("unpacking its source");
    build.step(
        Command::new("tar")
            .arg("xf")
            .arg(tarball)
            .args(["--strip-components=1", "--one-top-level=source"]),
    )?;
    let source = build.directory.join("source");
    let patch = build.directory.join("patch");
    fs::write(&patch, PATCH).map_err(CacheError::io("writing", &patch))?;
    build.step(Command::new("patch").args(["-p1", "-s", "-i"]).arg(patch).current_dir(&source))?;
    // QEMU wants a newer meson than some suites have, and before Python 3.11 tomli; the packages are
    // plain Python.
    let mut python_path = Vec::new();
    for package in ["meson/trixie", "python3-pycotap/trixie", "python3-tomli/trixie"] {
        python_path.push(packages.tree(&package.parse()?)?.join("usr/lib/python3/dist-packages"));
    }
    let python_path = std::env::join_paths(python_path).unwrap_or_default();
    // Beside the source: meson refuses a place above it.
    let output = build.directory.join("output");
    fs::create_dir_all(&output).map_err(CacheError::io("creating", &output))?;
    build.say("configuring");
    build.step(
        Command::new(source.join("configure"))
            .current_dir(&output)
            .args([
                "--target-list=x86_64-softmmu",
                "--without-default-features",
                "--enable-tcg",
                "--enable-attr",
                "--enable-virtfs",
                "--enable-pixman",
                "--enable-fdt=system",
                "--disable-docs",
                "--disable-werror",
                "--disable-download",
                // Debian's tarball has no binary firmware; its packages have.
                "--disable-install-blobs",
            ])
            .env("PYTHONPATH", &python_path),
    )?;
    build.say("compiling, 2 to 15 minutes on two cores");
    build.step(
        Command::new("ninja")
            .arg("qemu-system-x86_64")
            .current_dir(&output)
            .env("PYTHONPATH", &python_path),
    )?;
    build.finish(Path::new("output/qemu-system-x86_64"), part)?;
    Ok(make_executable(part)?)
}

/// Debian's Linux source, configured as a TDX host, to `part`.
pub(super) fn tdx_kernel(packages: &Packages, part: &Path) -> Result<(), EmulatorError> {
    let mut build = Build::start(KERNEL, KERNEL_NEEDS, part)?;
    let tree = packages.tree(&"linux-source-7.2/sid".parse()?)?.join("usr/src");
    let tarball = only(&tree, |name| name.ends_with(".tar.xz"), "tarball")?;
    build.say("unpacking its source");
    build.step(
        Command::new("tar")
            .arg("xf")
            .arg(tarball)
            .args(["--strip-components=1", "--one-top-level=source"]),
    )?;
    let source = build.directory.join("source");
    let fragment = build.directory.join("fragment");
    fs::write(&fragment, TDX_KERNEL_CONFIG).map_err(CacheError::io("writing", &fragment))?;
    build.say("configuring");
    let make = || {
        let mut make = Command::new("make");
        make.arg("-C").arg(&source);
        make
    };
    build.step(make().arg("tinyconfig"))?;
    build.step(
        Command::new("scripts/kconfig/merge_config.sh")
            .args(["-m", ".config"])
            .arg(fragment)
            .current_dir(&source),
    )?;
    build.step(make().arg("olddefconfig"))?;
    build.say("compiling, 5 to 25 minutes on two cores");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    build.step(make().arg(format!("-j{jobs}")).arg("bzImage"))?;
    build.finish(Path::new("source/arch/x86/boot/bzImage"), part)
}

/// A build in a directory of its own, with a log.
struct Build {
    what: &'static str,
    directory: PathBuf,
    log: PathBuf,
}

impl Build {
    fn start(what: &'static str, needs: &[&str], part: &Path) -> Result<Self, EmulatorError> {
        let packages = missing(needs);
        if !packages.is_empty() {
            return Err(EmulatorError::BuildPackages { what, packages });
        }
        let directory = part.with_extension("build");
        // What a failed attempt left; this one starts anew.
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(CacheError::io("removing", &directory))?;
        }
        fs::create_dir_all(&directory).map_err(CacheError::io("creating", &directory))?;
        let log = directory.join("log");
        say(format_args!("building {what}, once; its log is {}", log.display()));
        Ok(Self { what, directory, log })
    }

    fn say(&self, step: &str) {
        say(format_args!("{}: {step}", self.what));
    }

    /// Runs one step at low priority, its output in the log.
    fn step(&mut self, command: &mut Command) -> Result<(), EmulatorError> {
        self.try_step(command).map_err(|source| EmulatorError::Build {
            what: self.what,
            log: self.log.clone(),
            source,
        })
    }

    fn try_step(&self, command: &mut Command) -> Result<(), ProcessError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let start = |source| ProcessError::Start { program: program.clone(), source };
        let log = File::options().create(true).append(true).open(&self.log).map_err(start)?;
        let errors = log.try_clone().map_err(start)?;
        if command.get_current_dir().is_none() {
            command.current_dir(&self.directory);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().map_err(start)?;
        let status = progress::watch(child, &self.log, self.what).map_err(start)?;
        if status.success() {
            return Ok(());
        }
        let log = fs::read(&self.log).unwrap_or_default();
        Err(ProcessError::Failed {
            command: program,
            status: status.to_string(),
            output: process::last_lines(&String::from_utf8_lossy(&log), 20),
        })
    }

    /// Takes the product out and removes the rest, gigabytes.
    fn finish(self, product: &Path, part: &Path) -> Result<(), EmulatorError> {
        let product = self.directory.join(product);
        fs::copy(&product, part).map_err(CacheError::io("copying", product))?;
        let removed = fs::remove_dir_all(&self.directory);
        Ok(removed.map_err(CacheError::io("removing", &self.directory))?)
    }
}

/// Which of these Debian packages are not installed.
pub(super) fn missing(packages: &[&str]) -> Vec<String> {
    let installed = |package: &str| {
        let status = process::run("dpkg-query", ["-W", "-f=${Status}", package]);
        status.is_ok_and(|status| status.ends_with("ok installed"))
    };
    packages.iter().filter(|package| !installed(package)).map(ToString::to_string).collect()
}

fn only(
    directory: &Path,
    fits: impl Fn(&str) -> bool,
    what: &'static str,
) -> Result<PathBuf, EmulatorError> {
    let entries = fs::read_dir(directory).map_err(CacheError::io("reading", directory))?;
    entries
        .flatten()
        .find(|entry| fits(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .ok_or_else(|| EmulatorError::Source { directory: directory.into(), what })
}
