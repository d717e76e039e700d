//! QEMU: the one of this machine, or ours with a patch that makes it a confidential host.

mod build;
mod prebuilt;
mod recipe;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::cache::{Cache, CacheError};
use crate::host::Host;
use crate::kernel::KernelError;
use crate::packages::{PackageError, Packages};
use crate::process::{self, ProcessError};
use prebuilt::Prebuilt;
use recipe::Recipe;

/// The names of what was built before, beside its record.
const PREBUILT_EMULATOR: &str = "qemu-system-x86_64.xz";
const PREBUILT_TDX_KERNEL: &str = "linux-7.2.13-tdx-host.bzImage";

/// Debian's and Ubuntu's QEMU, of the package qemu-system-x86.
const STOCK: &str = "qemu-system-x86_64";

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    /// The program, or its loader and the loader's arguments before it.
    program: Vec<OsString>,
    /// Where its firmware is; none for the one that is installed on this machine.
    firmware: Vec<PathBuf>,
    /// In words, for people.
    pub(crate) origin: String,
}

/// Why there is no emulator.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// Nothing built is here, and building was not asked for.
    #[error(
        "{what} is not built yet: `casemate lab prepare --host {host}` builds it once \
         ({minutes} minutes or so on two cores)"
    )]
    NotBuilt {
        /// What.
        what: &'static str,
        /// For which host.
        host: Host,
        /// How long it takes.
        minutes: u32,
    },
    /// What the build needs is not installed.
    #[error(
        "building {what} needs packages that are not installed; please run:\n  \
         sudo apt-get install --no-install-recommends {}", packages.join(" ")
    )]
    BuildPackages {
        /// What.
        what: &'static str,
        /// Names of Debian packages.
        packages: Vec<String>,
    },
    /// Only a patched QEMU has what the confidential hosts are.
    #[error(
        "the {host} host is made by a patch to QEMU, which {} has not: leave it out; only the kvm host \
         runs on any QEMU", program.display()
    )]
    Stock {
        /// For which host.
        host: Host,
        /// The one that was named.
        program: PathBuf,
    },
    /// The QEMU that was named does not run.
    #[error(
        "{} does not run; a QEMU for this is in the package qemu-system-x86", program.display()
    )]
    NoStock {
        /// Which one.
        program: PathBuf,
        /// Why.
        source: ProcessError,
    },
    /// The files that the emulator is made of are not here.
    #[error(
        "the files that emulated hosts are made of are not in {tried}: install them with the program \
         (`make install`), or name their directory by CASEMATE_SHARE"
    )]
    NoRecipe {
        /// Where they were looked for.
        tried: String,
    },
    /// The prebuilt files are not where the variable says.
    #[error(
        "CASEMATE_LAB_PREBUILT names {}, which cannot be used: {reason}; correct it, or unset it to \
         build instead", directory.display()
    )]
    Prebuilt {
        /// What it names.
        directory: PathBuf,
        /// In words.
        reason: String,
    },
    /// The build itself failed.
    #[error("building {what} failed; its log is {}", log.display())]
    Build {
        /// What.
        what: &'static str,
        /// Where its output is.
        log: PathBuf,
        /// The step.
        source: ProcessError,
    },
    /// A source package has other files than expected.
    #[error("the source package in {} has no {what}", directory.display())]
    Source {
        /// Where it is.
        directory: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The program does not run.
    #[error(transparent)]
    Run(#[from] ProcessError),
    /// A packed file does not unpack.
    #[error(transparent)]
    Unpack(#[from] KernelError),
    /// A package could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Whether something that takes minutes may be built now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Building {
    /// Whoever waits knows, and sees the progress.
    Allowed,
    /// An error is better than a wait.
    Refused,
}

impl Emulator {
    /// The emulator for a host: patched for the confidential ones; for plain KVM the patched one
    /// when it is here, else this machine's own.
    pub(crate) fn find(
        host: Host,
        packages: &Packages,
        building: Building,
    ) -> Result<Self, EmulatorError> {
        match Self::patched(host, packages, Building::Refused) {
            Err(EmulatorError::NotBuilt { .. } | EmulatorError::NoRecipe { .. }) => {}
            result => return result,
        }
        if host == Host::Kvm
            && let Ok(stock) = Self::stock(host, Path::new(STOCK))
        {
            return Ok(stock);
        }
        Self::patched(host, packages, building)
    }

    /// A QEMU as distributions have it, with its own firmware: enough for plain KVM.
    pub(crate) fn stock(host: Host, program: &Path) -> Result<Self, EmulatorError> {
        if host != Host::Kvm {
            return Err(EmulatorError::Stock { host, program: program.into() });
        }
        let origin = format!("{} of this machine", program.display());
        let emulator = Self { program: vec![program.into()], firmware: Vec::new(), origin };
        process::output(Command::new(program).arg("--version"))
            .map_err(|source| EmulatorError::NoStock { program: program.into(), source })?;
        Ok(emulator)
    }

    fn patched(host: Host, packages: &Packages, building: Building) -> Result<Self, EmulatorError> {
        let cache = packages.cache();
        let recipe = Recipe::open()?;
        let places = Places::emulator(&recipe);
        if let Some(built) = cache.kept(&places.built) {
            return Self::with_firmware(vec![built.into()], "built here".into(), packages);
        }
        let prebuilt =
            prebuilt::get(cache, &places.prebuilt, PREBUILT_EMULATOR, &recipe.patch(), building)?;
        if let Some(program) = prebuilt {
            let command = prebuilt::with_libraries(&program, packages)?;
            return Self::with_firmware(command, "prebuilt".into(), packages);
        }
        if building == Building::Refused {
            return Err(EmulatorError::NotBuilt { what: "the emulator", host, minutes: 3 });
        }
        let built = cache.get(&places.built, |part| build::emulator(packages, &recipe, part))?;
        Self::with_firmware(vec![built.into()], "built here".into(), packages)
    }

    fn with_firmware(
        program: Vec<OsString>,
        origin: String,
        packages: &Packages,
    ) -> Result<Self, EmulatorError> {
        let mut firmware = Vec::new();
        for (package, place) in
            [("qemu-system-data/trixie", "usr/share/qemu"), ("seabios/trixie", "usr/share/seabios")]
        {
            firmware.push(packages.tree(&package.parse()?)?.join(place));
        }
        let emulator = Self { program, firmware, origin };
        process::output(emulator.command().arg("--version"))?;
        Ok(emulator)
    }

    /// A command that starts it, without arguments yet. It ends with the thread that starts it, so
    /// that nothing is left running when a test or the command line is killed.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&self.program);
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        command
    }

    /// What a saved machine state depends on.
    pub(crate) fn identity(&self) -> String {
        let version = process::output(self.command().arg("--version")).unwrap_or_default();
        format!("{:?} {:?} {version}", self.program, self.firmware)
    }
}

/// The QEMU that is installed on this machine, for machines of a test's own, without arguments yet. The one of
/// the emulated hosts is built with their devices only. It ends with the thread that starts it.
///
/// # Errors
///
/// None is installed.
pub fn qemu() -> Result<Command, EmulatorError> {
    Ok(Emulator::stock(Host::Kvm, Path::new(STOCK))?.command())
}

/// Whether something that takes minutes to build is here.
pub(crate) enum Availability {
    /// It is, and comes from there.
    Here(String),
    /// The files that it is made of are not, in words.
    NoRecipe(String),
    /// It can be built, once these Debian packages are installed.
    ToBuild {
        /// Their names.
        packages: Vec<String>,
        /// Why a prebuilt one is not taken, in words, where there is one or one was named.
        instead: Option<String>,
    },
}

/// Whether the patched emulator is here; nothing is fetched or unpacked to find out.
pub(crate) fn available(cache: &Cache) -> Availability {
    let needs = build::EMULATOR_NEEDS;
    availability(cache, Places::emulator, PREBUILT_EMULATOR, Recipe::patch, needs)
}

/// Whether the TDX host's kernel is here.
pub(crate) fn tdx_kernel_available(cache: &Cache) -> Availability {
    let source = |recipe: &Recipe| recipe.kernel_config.clone();
    availability(cache, Places::tdx_kernel, PREBUILT_TDX_KERNEL, source, build::KERNEL_NEEDS)
}

fn availability(
    cache: &Cache,
    places: impl Fn(&Recipe) -> Places,
    prebuilt: &str,
    source: impl Fn(&Recipe) -> Vec<u8>,
    needs: &str,
) -> Availability {
    let recipe = match Recipe::open() {
        Ok(recipe) => recipe,
        Err(error) => return Availability::NoRecipe(error.to_string()),
    };
    let places = places(&recipe);
    let kept = [&places.built, &places.prebuilt].into_iter().find_map(|place| cache.kept(place));
    if let Some(path) = kept {
        return Availability::Here(path.display().to_string());
    }
    let instead = match Prebuilt::find(prebuilt, &source(&recipe)) {
        Prebuilt::Fits(path) => return Availability::Here(path.display().to_string()),
        Prebuilt::Other { reason } | Prebuilt::Nothing { named: Some((_, reason)) } => Some(reason),
        Prebuilt::Nothing { named: None } => None,
    };
    Availability::ToBuild { packages: build::missing(needs), instead }
}

/// Where in the cache something is that was built here, and something prebuilt.
struct Places {
    built: String,
    prebuilt: String,
}

impl Places {
    fn emulator(recipe: &Recipe) -> Self {
        Self::below(&format!("emulator/{}", recipe.emulator_id()))
    }

    fn tdx_kernel(recipe: &Recipe) -> Self {
        Self::below(&format!("tdx-host-kernel/{}", recipe.kernel_id()))
    }

    fn below(directory: &str) -> Self {
        Self { built: format!("{directory}/built"), prebuilt: format!("{directory}/prebuilt") }
    }
}

/// The TDX host's kernel: no Debian kernel is one.
pub(crate) fn tdx_kernel(
    packages: &Packages,
    building: Building,
) -> Result<PathBuf, EmulatorError> {
    let cache = packages.cache();
    let recipe = Recipe::open()?;
    let places = Places::tdx_kernel(&recipe);
    if let Some(built) = cache.kept(&places.built) {
        return Ok(built);
    }
    let prebuilt = prebuilt::get(
        cache,
        &places.prebuilt,
        PREBUILT_TDX_KERNEL,
        &recipe.kernel_config,
        building,
    )?;
    if let Some(kernel) = prebuilt {
        return Ok(kernel);
    }
    if building == Building::Refused {
        let what = "the TDX host's kernel";
        return Err(EmulatorError::NotBuilt { what, host: Host::Tdx, minutes: 7 });
    }
    cache.get(&places.built, |part| build::tdx_kernel(packages, &recipe, part))
}

/// Enough of a hash for a name.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    hash(bytes).chars().take(16).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a file a program.
fn make_executable(path: &Path) -> Result<(), CacheError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(CacheError::io("making executable", path))
}
