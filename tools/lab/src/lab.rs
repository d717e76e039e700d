//! A command in an emulated host: what is asked for, and what came of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cache::CacheError;
use crate::chip::Chip;
use crate::emulator::{self, Building, Emulator, EmulatorError, short_hash};
use crate::guest::{self, GuestError};
use crate::host::Host;
use crate::kernel::{Flavour, Kernel, KernelError, NEWEST, OLDEST};
use crate::machine::{self, Machine};
use crate::packages::{PackageError, Packages};
use crate::process::ProcessError;

/// An emulated host in which to run a command.
#[derive(Clone, Debug)]
pub struct Lab {
    host: Host,
    chip: Chip,
    vcpus: u8,
    memory_mib: u32,
    timeout: Duration,
    share: Option<PathBuf>,
    kernel: String,
    qemu: Option<PathBuf>,
    cold: bool,
    log: Option<PathBuf>,
}

/// What a command in an emulated host did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status as a shell says it: 128 and the signal when it was killed.
    pub status: u8,
    /// What it wrote, standard output and error as they came; empty when that was streamed.
    pub console: String,
    /// The host kernel's messages, after the command.
    pub kernel_log: String,
    /// What the secure processor or the TDX module was asked, one line each; empty for plain KVM.
    pub platform_log: String,
    /// From the emulator's start to its end.
    pub time: Duration,
}

/// Where the command's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// Into [`Output::console`].
    Collected,
    /// To the standard output as it comes. With the terminal on standard input and output, that one
    /// becomes the command's.
    Streamed,
}

/// Why a command was not run in an emulated host, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The TDX host has a kernel of its own.
    #[error("the TDX host has a kernel of its own, the newest; {kernel} was asked for")]
    Kernel {
        /// What was asked for.
        kernel: String,
    },
    /// SNP's memory map asks for it.
    #[error("{memory_mib} MiB are too few for the {host} host: it needs {least_mib}")]
    Memory {
        /// Which one.
        host: Host,
        /// What was asked for.
        memory_mib: u32,
        /// The least.
        least_mib: u32,
    },
    /// No directory that can be shared.
    #[error("the directory {} cannot be shared", path.display())]
    Share {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("the command did not end within {} s; it wrote last:\n{console}", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The last lines.
        console: String,
    },
    /// The machine stopped before the command ended.
    #[error(
        "the emulated host ended ({status}) before the command did; its last words:\n{console}"
    )]
    Died {
        /// Of the emulator.
        status: String,
        /// The last lines of the kernel and of the emulator.
        console: String,
    },
    /// The machine's state was not saved.
    #[error("saving the state of the emulated host failed: {reason}")]
    Save {
        /// What the emulator said.
        reason: String,
    },
    /// No emulator.
    #[error(transparent)]
    Emulator(#[from] EmulatorError),
    /// No kernel.
    #[error(transparent)]
    HostKernel(#[from] KernelError),
    /// No first file system.
    #[error(transparent)]
    Image(#[from] GuestError),
    /// A package could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The emulator cannot be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file that goes in or comes out.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Lab {
    /// A host with its usual processors and memory, and a limit of ten minutes.
    pub fn new(host: Host) -> Self {
        Self {
            host,
            chip: Chip::default(),
            vcpus: host.default_vcpus(),
            memory_mib: host.default_memory_mib(),
            timeout: Duration::from_secs(600),
            share: None,
            kernel: if host == Host::Tdx { NEWEST } else { OLDEST }.into(),
            qemu: None,
            cold: false,
            log: None,
        }
    }

    /// Processors of the host. A TD can have as many vCPUs and no more.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u8) -> Self {
        self.vcpus = vcpus.max(1);
        self
    }

    /// Chip of an [`Host::Snp`] host; other hosts ignore it.
    #[must_use]
    pub fn chip(mut self, chip: Chip) -> Self {
        self.chip = chip;
        self
    }

    /// Memory of the host in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// After how long the command is given up.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A directory that the command can write, at the same path.
    #[must_use]
    pub fn share(mut self, directory: impl AsRef<Path>) -> Self {
        self.share = Some(directory.as_ref().into());
        self
    }

    /// The series of Debian's kernel that the host runs, `6.12` or `7.2`.
    #[must_use]
    pub fn kernel(mut self, series: &str) -> Self {
        self.kernel = series.into();
        self
    }

    /// A QEMU as distributions have it, instead of the patched one; for [`Host::Kvm`] only.
    #[must_use]
    pub fn qemu(mut self, program: impl AsRef<Path>) -> Self {
        self.qemu = Some(program.as_ref().into());
        self
    }

    /// Boots the host rather than resume a saved state.
    #[must_use]
    pub fn cold(mut self, cold: bool) -> Self {
        self.cold = cold;
        self
    }

    /// A directory that gets the host's logs: `console`, `kernel`, `platform`.
    #[must_use]
    pub fn log(mut self, directory: impl AsRef<Path>) -> Self {
        self.log = Some(directory.as_ref().into());
        self
    }

    /// Fetches and builds all that the host needs, with progress on the standard error: minutes to
    /// half an hour the first time.
    ///
    /// # Errors
    ///
    /// Something cannot be had; the text says what to do.
    pub fn prepare(&self) -> Result<(), LabError> {
        let machine = self.machine(Building::Allowed)?;
        if !self.cold {
            machine.saved_state()?;
        }
        Ok(())
    }

    /// Fetches what the host needs but builds nothing.
    ///
    /// # Errors
    ///
    /// Something is missing; the text says what to do.
    pub fn check(&self) -> Result<(), LabError> {
        self.machine(Building::Refused).map(|_| ())
    }

    /// Runs a command as root inside the host, with this machine's files (read-only, but for
    /// [`Lab::share`], and fresh `/tmp` and `/run`), in the current directory, and collects what it
    /// writes. Nothing that takes minutes is built.
    ///
    /// # Errors
    ///
    /// The command could not be started or did not end. Its own failure is no error: see
    /// [`Output::status`].
    pub fn run<S: AsRef<str>>(&self, command: &[S]) -> Result<Output, LabError> {
        self.go(command, Terminal::Collected, Building::Refused)
    }

    /// As [`Lab::run`], its output streamed and the terminal, where there is one, given to the
    /// command; what is not built yet is built.
    ///
    /// # Errors
    ///
    /// As for [`Lab::run`].
    pub fn stream<S: AsRef<str>>(&self, command: &[S]) -> Result<Output, LabError> {
        self.go(command, Terminal::Streamed, Building::Allowed)
    }

    fn go<S: AsRef<str>>(
        &self,
        command: &[S],
        terminal: Terminal,
        building: Building,
    ) -> Result<Output, LabError> {
        let machine = self.machine(building)?;
        let state = if self.cold { None } else { Some(machine.saved_state()?) };
        let command: Vec<_> = command.iter().map(AsRef::as_ref).collect();
        let start = Instant::now();
        let job = machine::Job {
            command: &command,
            share: self.shared()?,
            terminal,
            timeout: self.timeout,
            log: self.log.as_deref(),
        };
        let mut output = machine.run(&job, state.as_deref())?;
        output.time = start.elapsed();
        Ok(output)
    }

    fn shared(&self) -> Result<Option<PathBuf>, LabError> {
        let Some(path) = &self.share else { return Ok(None) };
        let refuse = |source| LabError::Share { path: path.clone(), source };
        std::fs::create_dir_all(path).map_err(refuse)?;
        Ok(Some(path.canonicalize().map_err(refuse)?))
    }

    fn machine(&self, building: Building) -> Result<Machine, LabError> {
        if self.host == Host::Tdx && self.kernel != NEWEST {
            return Err(LabError::Kernel { kernel: self.kernel.clone() });
        }
        let least_mib = if self.host == Host::Snp { 5120 } else { 1024 };
        if self.memory_mib < least_mib {
            let (host, memory_mib) = (self.host, self.memory_mib);
            return Err(LabError::Memory { host, memory_mib, least_mib });
        }
        let packages = Packages::open()?;
        let emulator = match &self.qemu {
            Some(program) => Emulator::stock(self.host, program)?,
            None => Emulator::find(self.host, &packages, building)?,
        };
        let kernel = match self.host {
            Host::Tdx => None,
            _ => Some(Kernel::debian(&packages, &self.kernel, Flavour::Generic)?),
        };
        let initramfs = self.initramfs(&packages, kernel.as_ref())?;
        let kernel = match kernel {
            Some(kernel) => kernel.image,
            None => emulator::tdx_kernel(&packages, building)?,
        };
        Ok(Machine {
            cache: packages.cache().clone(),
            emulator,
            host: self.host,
            chip: self.chip.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kernel,
            initramfs,
        })
    }

    /// The host's first file system, made once for all that goes into it.
    fn initramfs(&self, packages: &Packages, kernel: Option<&Kernel>) -> Result<PathBuf, LabError> {
        const INIT: &str = include_str!("host-init.sh");
        let release = kernel.map_or("", |kernel| &kernel.release);
        let modules = self.host.modules();
        let contents = format!("{release} {modules:?} {} {INIT}", guest::PROLOGUE);
        let name = format!("hosts/{}.cpio", short_hash(contents.as_bytes()));
        packages.cache().get(name, |part| {
            let modules = kernel.map_or(Ok(Vec::new()), |kernel| kernel.modules(modules))?;
            let image = guest::initramfs(packages, &modules, INIT)?.build();
            Ok(std::fs::write(part, image).map_err(CacheError::io("writing", part))?)
        })
    }
}
