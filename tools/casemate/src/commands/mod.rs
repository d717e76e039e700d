//! One module per command. Each has a `clap::Args` type named `Args`, whose doc comment is the
//! command's help, and `pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode>`.
//!
//! Exit status, unless a command's help says otherwise: 0 it worked, 1 a negative verdict, 2 bad
//! input or usage (also what an `Err` from `run` becomes).

pub(crate) mod completions;
pub(crate) mod host;
pub(crate) mod lab;
pub(crate) mod man;
pub(crate) mod verify;

/// Bad input or usage. clap uses the same.
pub(crate) const EXIT_BAD_INPUT: u8 = 2;
