//! A guest's life: board, memory, launch, vCPUs, devices, end.
//!
//! [`Guest`] is a configuration with its launch plan, made without a look at /dev/kvm. [`Machine::launch`] turns
//! it into a guest that waits for its first instruction, and [`Machine::run`] runs it to its
//! [`Outcome`].

mod arch;
mod devices;
mod firmware_config;
mod guest;
mod helper;
mod interrupts;
mod launch;
mod limits;
mod machine;
mod outcome;
pub mod platform;
mod prefault;
mod quiet;
pub mod quote_service;
mod ram;
mod teardown;
mod turns;
mod vcpu;

pub use arch::Exit;
pub use casemate_devices::memory::SharedMemory;
pub use casemate_devices::outlet::Outlet;
pub use casemate_devices::thread;
pub use casemate_devices::virtio::blk::BlockHandle;
pub use devices::ConsolePorts;
pub use guest::Guest;
pub use launch::LaunchError;
pub use limits::LimitError;
pub use machine::{Control, Ended, Machine, Watcher};
pub use outcome::Outcome;
pub use platform::StepError;
pub use ram::{GuestRam, RamError};
