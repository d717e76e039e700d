//! The image under hosts that are honest, hosts that attack it, and hosts that write anything at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "../../harness/mod.rs"]
mod harness;

mod guest;
mod honest;
