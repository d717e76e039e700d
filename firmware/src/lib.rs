//! The logic of the measured guest firmware, and the formats through which a VMM talks to it. No
//! addresses are touched here and no special instructions used: every line runs under `cargo test`
//! as it does in the image.

#![no_std]
#![forbid(unsafe_code)]

pub mod bytes;
pub mod config;
pub mod fatal;
pub mod layout;
pub mod window;
