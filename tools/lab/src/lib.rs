//! Emulated hosts: whole machines in software that run a command under a real `/dev/kvm`.

#![forbid(unsafe_code)]

pub mod cache;
mod chip;
mod emulator;
pub mod guest;
mod host;
pub mod initramfs;
pub mod kernel;
mod lab;
mod machine;
pub mod packages;
mod patience;
mod process;
mod progress;
mod require;
mod script;
mod seal;
mod state;
mod status;

pub use chip::{Chip, Processor};
pub use emulator::{EmulatorError, qemu};
pub use host::Host;
pub use lab::{Lab, LabError, Output};
pub use patience::Patience;
pub use process::ProcessError;
pub use require::{nothing_may_be_missing, require, require_lab, require_ok};
pub use status::{Part, State, status};

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
