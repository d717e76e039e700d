//! The launch plan: everything that enters a guest's memory before its first instruction, in
//! order, with the initial state of every vCPU and the launch policy.
//!
//! Measuring, launching, exporting and explaining a guest all read the same [`LaunchPlan`], so
//! that what is predicted and what is launched cannot differ.
//!
//! This crate is pure: no KVM, no files, no clock, no `unsafe`. It builds on any OS, so that a
//! verifier can use it as well as a launcher.

#![forbid(unsafe_code)]

mod bytes;
pub mod diff;
mod digest;
pub mod firmware;
mod gpa;
mod guid;
pub mod guid_table;
pub mod igvm;
pub mod kernel_hashes;
pub mod linux;
pub mod loader_window;
pub mod manifest;
mod memory_map;
pub mod ovmf;
mod plan;
pub mod profile;
pub mod sev_metadata;
pub mod snp;
pub mod tdx;
mod vcpu;

pub use bytes::Bytes;
pub use digest::{Digest384, DigestError};
pub use gpa::{Gpa, GpaError, GpaRange, PAGE_SIZE, PageCount};
pub use guid::Guid;
pub use memory_map::{MemoryKind, MemoryRange};
pub use plan::{
    Contents, FIRMWARE_TAG, IdBlock, Import, LaunchPlan, PageKind, PlatformKind, Policy,
    SnpIdentity, SnpPolicy, TdxPolicy,
};
pub use vcpu::{InitialVcpu, Segment};
