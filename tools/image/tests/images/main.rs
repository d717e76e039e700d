//! Images from sources that are made here: what they contain, what is refused, and what other tools make of
//! them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod directories;
mod hostile;
mod layers;
mod oracles;
mod properties;
mod sources;
mod support;
mod verity;
