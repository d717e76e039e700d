//! The sandbox as the process with the guest, or a broker, sees it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::thread::CapabilitySet;

use crate::files::Files;
use crate::filter::{self, Thread};
use crate::privileges::Inherited;
use crate::{SandboxError, User, privileges, root};

/// How much of the sandbox there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of it.
    On,
    /// All of it, but the kernel logs the system calls for which it would kill.
    Log,
    /// None.
    Off,
}

impl Mode {
    /// The words for the modes.
    pub const WORDS: &'static [&'static str] = &["on", "log", "off"];
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        match word {
            "on" => Ok(Self::On),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => Err(UnknownMode),
        }
    }
}

/// A word that is no mode.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("expected on, log or off")]
pub struct UnknownMode;

/// What of the host's files the process needs after its launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Connect to sockets below this directory, and remove them.
    Sockets(PathBuf),
    /// Connect to sockets below this directory.
    Connect(PathBuf),
    /// Read files below this directory.
    Read(PathBuf),
}

impl Access {
    fn folder(&self) -> &Path {
        match self {
            Self::Sockets(path) | Self::Connect(path) | Self::Read(path) => path,
        }
    }
}

/// Rights that the process with the guest, or a broker, gives up.
#[derive(Clone, Debug)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mode: Mode,
    user: Option<User>,
    accesses: Vec<Access>,
    /// `None` without a sandbox.
    files: Option<Files>,
    /// Whether the process has mounts of its own.
    separate: bool,
    /// Files that somebody had opened for the process.
    inherited: Inherited,
}

impl Sandbox {
    /// No sandbox.
    #[must_use]
    pub fn off() -> Self {
        Self(Arc::new(Inner {
            mode: Mode::Off,
            user: None,
            accesses: Vec::new(),
            files: None,
            separate: false,
            inherited: Inherited::default(),
        }))
    }

    /// Begins the sandbox of the process, which has one thread and has opened nothing yet. [`seal`](Self::seal) closes the
    /// files that it has inherited, but for the standard streams and `keep`. Then it can reach what `accesses`
    /// name, and becomes `user`.
    ///
    /// # Errors
    /// If the kernel refuses a step.
    pub fn begin(
        mode: Mode,
        user: Option<User>,
        accesses: Vec<Access>,
        keep: &impl AsFd,
    ) -> Result<Self, SandboxError> {
        if mode == Mode::Off {
            return Ok(Self::off());
        }
        privileges::limit_allocator();
        let step = SandboxError::process("list inherited files");
        let inherited = Inherited::now(keep).map_err(step)?;
        let files = Some(Files::new(&accesses)?);
        // A directory that is the root itself leaves nothing to take away.
        let whole = accesses.iter().any(|access| access.folder() == Path::new("/"));
        let step = SandboxError::process("make mounts of its own");
        let separate = privileges::may_mount() && !whole && root::separate().map_err(step)?;
        let step = SandboxError::process("lower the bounding set of capabilities");
        privileges::gain_nothing().map_err(step)?;
        Ok(Self(Arc::new(Inner { mode, user, accesses, files, separate, inherited })))
    }

    /// Takes the last rights of the whole process, whose files are all open.
    ///
    /// # Errors
    /// If the kernel refuses a step.
    pub fn seal(&self) -> Result<(), SandboxError> {
        if self.0.mode == Mode::Off {
            return Ok(());
        }
        self.0.inherited.close();
        if self.0.separate {
            let step = SandboxError::process("enter an empty root directory");
            root::empty(self.0.accesses.iter().map(Access::folder)).map_err(step)?;
        }
        let step = SandboxError::process("keep memory out of core files");
        privileges::hide_memory().map_err(step)
    }

    /// Takes the rights of the calling thread that its kind does not need, and of threads that it starts from now on.
    ///
    /// # Errors
    /// If the kernel refuses a step.
    pub fn enter(&self, thread: Thread) -> Result<(), SandboxError> {
        let Some(files) = &self.0.files else { return Ok(()) };
        let failed = |step, source| SandboxError::Thread { thread, step, source };
        files.restrict().map_err(|error| failed("restrict its files", error))?;
        if let Some(user) = self.0.user {
            let changed = privileges::become_user(user);
            changed.map_err(|error| failed("change its user", error.into()))?;
            // A change of identity may show memory again.
            let hidden = privileges::hide_memory();
            hidden.map_err(|error| failed("keep memory out of core files", error.into()))?;
        }
        // A broker locks its memory.
        let kept = match thread {
            Thread::Broker => CapabilitySet::IPC_LOCK,
            _ => CapabilitySet::empty(),
        };
        let dropped = privileges::drop_capabilities(kept);
        dropped.map_err(|error| failed("drop its capabilities", error.into()))?;
        let filtered = filter::install(thread, self.0.mode);
        filtered.map_err(|error| failed("filter its system calls", error.into()))
    }
}
