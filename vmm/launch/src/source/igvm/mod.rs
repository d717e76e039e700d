//! IGVM files (Independent Guest Virtual Machine format): read as a stream, measured, turned into
//! a plan, written from one.
//!
//! A file lists, for each platform that it supports, what enters the guest's memory. The list's
//! order is part of the measurement and is kept. Layouts are those of the `igvm_defs` crate; its
//! sister `igvm` holds a whole file as one allocation per page and stops the program on some wrong
//! files, so that it is an oracle in the tests and reads nothing here.

mod error;
mod export;
mod file;
mod header;
mod id_block;
mod import;
mod inspect;
mod kvm;
pub(crate) mod steps;
mod tell;
pub(crate) mod vmsa;

pub use error::IgvmError;
pub use export::{ExportError, export, with_normal_zeroes};
pub use file::{IgvmFile, Platform};
pub use header::ParameterKind;
pub use import::{ImportError, Imported, import};
pub use inspect::{Item, inspect};
pub(crate) use kvm::Kvm;
pub use kvm::KvmRefusal;
pub use steps::{Parameter, ZeroPages};
pub use tell::TellError;
pub use vmsa::VmsaError;
