//! Inside the guest: asks the processor for evidence, fetches secrets with it, and hands them on.
//!
//! A secret is in this process's memory, which is locked and wiped when it is no longer needed, and in a
//! pipe to whoever gets it. It is never written to a file or a log.

mod address;
mod check;
mod client;
mod evidence;
mod exchange;
mod forward;
mod handover;
mod luks;
mod memory;

pub use address::{Address, AddressError, DEFAULT_PORT};
pub use check::{CheckError, check, report};
pub use client::{FetchError, Trusted, fetch};
pub use evidence::{EvidenceError, EvidenceSource, TSM_ROOT, Tsm};
pub use exchange::ExchangeError;
pub use forward::forward;
pub use handover::{HandoverError, open_volume, run};
pub use luks::{LuksError, LuksHeader, MAX_HEADER, MetadataError};
pub use memory::{MemoryError, protect_memory};
