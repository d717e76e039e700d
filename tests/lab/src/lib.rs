//! Emulated hosts: whole machines in software that run a command under a real `/dev/kvm`.

#![forbid(unsafe_code)]

pub mod cache;
pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod packages;
mod process;
mod progress;
mod repository;

pub use process::ProcessError;
