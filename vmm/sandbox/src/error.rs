//! Reasons why a sandbox could not be made.

use std::io;
use std::path::PathBuf;

use crate::Thread;

/// Reason why a right could not be given up. Guest or broker then do not run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step that concerns the whole process.
    #[error("could not sandbox the process: {step}; --sandbox off runs it without a sandbox")]
    Process {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A directory that the guest's process needs later.
    #[error("could not keep the directory {path} open")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Landlock.
    #[error(
        "could not restrict the files of the process; enable Landlock in the kernel (lsm=...,landlock), or use \
         --sandbox off"
    )]
    Files(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A step of one thread.
    #[error("could not sandbox a thread of the kind {thread:?}: {step}")]
    Thread {
        /// The kind of thread.
        thread: Thread,
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl SandboxError {
    pub(crate) fn process<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Process { step, source: error.into() }
    }
}

impl From<SandboxError> for io::Error {
    fn from(error: SandboxError) -> Self {
        Self::other(error)
    }
}
