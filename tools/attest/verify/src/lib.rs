//! Judges evidence of confidential guests against a policy, offline, at a given time.
//!
//! The `verify` function of each kind ([`snp`], [`tdx`], [`azure`], [`nitro`], [`google`], [`cca`]) takes evidence, a policy, and a
//! [`Timestamp`], and returns a [`Judgement`]: a verdict, every check by name with what it found, the claims of
//! the evidence, and the judgements of the evidence that it rests on. None reads a clock, a file or the network,
//! and none panics on any input.
//!
//! The verdict is [`Verdict::Accept`] only when every check of the evidence's kind, and every
//! check that the policy asks for, was done and passed. A check that could not be done is in the
//! list as [`Outcome::NotDone`] with the reason. A condition that the policy does not set is no
//! check: it is not in the list but in [`Judgement::unset`].

#![forbid(unsafe_code)]

pub mod azure;
mod cbor;
pub mod cca;
mod cose;
pub mod google;
mod hex;
mod judgement;
mod little_endian;
pub mod names;
pub mod nitro;
mod policy;
pub mod ready;
pub mod rtmr;
pub mod snp;
pub mod tdx;
mod time;
pub mod tpm;
mod weak;
mod x509;

pub use hex::{Hex, OneOrMany, Values};
pub use judgement::{Check, Judgement, Outcome, Part, Trust, Verdict};
pub use names::{CheckName, Question};
pub use policy::PolicyError;
pub use snp::{MinimumTcb, SnpPolicy};
pub use tdx::{TcbStatus, TdxPolicy};
pub use time::{TimeError, Timestamp};
pub use weak::Weakness;

/// The names of all checks, those of several kinds first.
pub fn check_names() -> impl Iterator<Item = CheckName> {
    let kinds = [
        names::NAMES,
        snp::checks::NAMES,
        tdx::checks::NAMES,
        tpm::checks::NAMES,
        azure::checks::NAMES,
        nitro::checks::NAMES,
        google::checks::NAMES,
        cca::checks::NAMES,
    ];
    kinds.into_iter().flatten().copied()
}

/// The longest report, certificate or revocation list that is read, in bytes.
pub const MAX_CERTIFICATE: usize = 64 * 1024;
/// The longest quote, event log, collateral or policy that is read, in bytes.
pub const MAX_INPUT: usize = 4 * 1024 * 1024;

/// Runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
