//! What integration tests share: the files they need, guests, the emulated host.

pub mod agent;
pub mod chip;
pub mod cloud;
pub mod disk;
pub mod evidence;
pub mod process;
pub mod quotes;
pub mod tiny;
pub mod vectors;
pub mod vtpm;
