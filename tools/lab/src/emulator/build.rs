//! Building the emulator and the TDX host's kernel from Debian's sources.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::recipe::{KERNEL_CONFIG, Recipe};
use super::{EmulatorError, make_executable};
use crate::cache::CacheError;
use crate::packages::{PackageError, Packages, Spec};
use crate::process::{self, ProcessError};
use crate::progress::{self, say};

const EMULATOR: &str = "the emulator";
/// Debian packages, one a line; the set-up script reads the same files.
pub(super) const EMULATOR_NEEDS: &str = include_str!("../../qemu/emulator.packages");
/// How QEMU is configured: one machine type, its own devices, and of its features what the lab uses.
pub(super) const CONFIGURE: &[&str] = &[
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-x86_64=casemate",
    "--enable-tcg",
    "--enable-attr",
    "--enable-virtfs",
    "--enable-trace-backends=nop",
    "--disable-debug-info",
    "--disable-docs",
    "--disable-werror",
    "--disable-download",
    "--enable-fdt=system",
    "--disable-guest-agent",
    "--disable-tools",
    // Debian's tarball has no binary firmware; its packages have.
    "--disable-install-blobs",
];
/// The series that the patches are for, at any of its versions.
const QEMU: &[&str] = &["qemu/trixie", "qemu=1:10.0.*"];
const KERNEL: &str = "the TDX host's kernel";
/// The version that is known to work as a TDX host, then whatever Debian has instead.
const LINUX: &[&str] = &["linux-source-7.2/sid", "linux-source-*/sid"];
pub(super) const KERNEL_NEEDS: &str = include_str!("../../qemu/tdx-host-kernel.packages");

/// Debian's QEMU source, patched, built for x86-64 machines only, to `part`.
pub(super) fn emulator(
    packages: &Packages,
    recipe: &Recipe,
    part: &Path,
) -> Result<(), EmulatorError> {
    let mut build = Build::start(EMULATOR, EMULATOR_NEEDS, part)?;
    let sources = packages.source_of(&specs(QEMU)?)?;
    let tarball = only(&sources, |name| name.contains(".orig.tar."), "tarball")?;
    build.say("unpacking its source");
    build.step(
        Command::new("tar")
            .arg("xf")
            .arg(tarball)
            .args(["--strip-components=1", "--one-top-level=source"]),
    )?;
    let source = build.directory.join("source");
    for (name, _) in &recipe.patches {
        let patch = recipe.directory.join(name);
        let mut apply = Command::new("patch");
        build.step(apply.args(["-p1", "-s", "-i"]).arg(patch).current_dir(&source))?;
    }
    let devices = source.join("configs/devices/x86_64-softmmu/casemate.mak");
    fs::write(&devices, &recipe.devices).map_err(CacheError::io("writing", &devices))?;
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
            .args(CONFIGURE)
            .env("PYTHONPATH", &python_path),
    )?;
    build.say("compiling, some two minutes on two cores");
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
pub(super) fn tdx_kernel(
    packages: &Packages,
    recipe: &Recipe,
    part: &Path,
) -> Result<(), EmulatorError> {
    let mut build = Build::start(KERNEL, KERNEL_NEEDS, part)?;
    let tree = packages.tree_of(&specs(LINUX)?)?.join("usr/src");
    let tarball = only(&tree, |name| name.ends_with(".tar.xz"), "tarball")?;
    build.say("unpacking its source");
    build.step(
        Command::new("tar")
            .arg("xf")
            .arg(tarball)
            .args(["--strip-components=1", "--one-top-level=source"]),
    )?;
    let source = build.directory.join("source");
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
            .arg(recipe.directory.join(KERNEL_CONFIG))
            .current_dir(&source),
    )?;
    build.step(make().arg("olddefconfig"))?;
    build.say("compiling, some six minutes on two cores");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    build.step(make().arg(format!("-j{jobs}")).arg("bzImage"))?;
    build.finish(Path::new("source/arch/x86/boot/bzImage"), part)
}

fn specs(texts: &[&str]) -> Result<Vec<Spec>, PackageError> {
    texts.iter().map(|text| text.parse()).collect()
}

/// A build in a directory of its own, with a log.
struct Build {
    what: &'static str,
    directory: PathBuf,
    log: PathBuf,
}

impl Build {
    fn start(what: &'static str, needs: &str, part: &Path) -> Result<Self, EmulatorError> {
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
pub(super) fn missing(packages: &str) -> Vec<String> {
    let installed = |package: &str| {
        let status = process::run("dpkg-query", ["-W", "-f=${Status}", package]);
        status.is_ok_and(|status| status.ends_with("ok installed"))
    };
    packages.lines().filter(|package| !installed(package)).map(str::to_owned).collect()
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
