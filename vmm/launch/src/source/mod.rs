//! Everything that a guest can be started from, each turned into a [`LaunchPlan`](crate::LaunchPlan):
//! which pages, in which order, and the registers of the vCPUs.

pub mod firmware;
mod guid;
pub mod guid_table;
pub mod igvm;
pub mod kernel_hashes;
pub mod linux;
pub mod loader_window;
pub mod ovmf;
pub mod sev_metadata;
pub mod svsm;
pub mod tdvf;

pub use guid::Guid;
