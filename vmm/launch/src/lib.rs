//! The launch plan: everything that enters a guest's memory before its first instruction, in
//! order, with the initial state of every vCPU and the launch policy.
//!
//! Measuring, launching, exporting and explaining a guest all read the same [`LaunchPlan`], so
//! that what is predicted and what is launched cannot differ.
//!
//! This crate is pure: no KVM, no files, no clock, no `unsafe`. It builds on any OS, so that a
//! verifier can use it as well as a launcher.

#![forbid(unsafe_code)]

pub mod measure;
mod plan;
pub mod rules;
pub mod source;

pub use measure::{diff, manifest, snp, tdx};
pub use plan::{
    Bytes, Contents, Digest384, DigestError, FIRMWARE_TAG, Gpa, GpaError, GpaRange, IdBlock,
    Import, InitialVcpu, LaunchPlan, MemoryKind, MemoryRange, PAGE_SIZE, PageCount, PageKind,
    PlatformError, PlatformKind, Policy, Segment, SnpIdentity, SnpPolicy, TdxPolicy, VmsaPage,
};
pub use rules as profile;
pub use source::{
    Guid, firmware, guid_table, igvm, kernel_hashes, linux, loader_window, ovmf, sev_metadata,
    svsm, tdvf,
};

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
