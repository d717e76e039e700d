//! Intel TDX: the measurement registers of a plan.
//!
//! MRTD holds the pages that the host adds before the guest runs ([`Mrtd`]); RTMR0..3 hold what
//! the guest's firmware and kernel extend afterwards ([`rtmr`]). Neither the memory size nor the
//! number of vCPUs is in MRTD.

mod authenticode;
pub mod events;
mod mrtd;
pub mod rtmr;

pub use authenticode::AuthenticodeError;
pub use mrtd::{Mrtd, MrtdError, PageOrder, manifest, mrtd};
