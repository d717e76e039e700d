//! The logic of the measured guest firmware, and the formats through which a VMM talks to it. No
//! addresses are touched here and no special instructions used: every line runs under `cargo test`
//! as it does in the image.

#![no_std]
#![forbid(unsafe_code)]

pub mod accept;
pub mod acpi;
pub mod bytes;
pub mod config;
pub mod cpuid;
pub mod fatal;
pub mod handoff;
pub mod kernel;
pub mod layout;
pub mod memory_map;
pub mod sha256;
pub mod sha384;
pub mod window;
