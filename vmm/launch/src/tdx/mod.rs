//! Intel TDX: from a TDVF image to a plan, and what a plan measures to.
//!
//! MRTD holds the pages that the host adds before the guest runs ([`Mrtd`]); RTMR0..3 hold what
//! the guest's firmware and kernel extend afterwards ([`rtmr`]). Neither the memory size nor the
//! number of vCPUs is in MRTD.

mod authenticode;
pub mod hob;
mod mrtd;
pub mod qemu_kernel;
pub mod rtmr;
mod source;
mod tdvf;

pub use authenticode::AuthenticodeError;
pub use mrtd::{Mrtd, MrtdError, PageOrder, manifest, mrtd};
pub use source::{
    ATTRIBUTE_DEBUG, ATTRIBUTE_MIGRATABLE, ATTRIBUTE_SEPT_VE_DISABLE, SourceError, plan, td_hob,
};
pub use tdvf::{Section, SectionKind, Tdvf, TdvfError};
