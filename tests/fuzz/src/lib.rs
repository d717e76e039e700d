//! What targets of whole devices share: a machine without KVM, and scripts that drive it.

mod machine;
mod script;

pub use machine::{Buffer, Devices, MEMORY_SIZE, Machine, PRIVATE};
pub use script::{Script, drive};
