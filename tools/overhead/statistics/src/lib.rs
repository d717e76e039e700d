//! Statistics of a benchmark that compares arms in random blocks.
//!
//! In each block every arm runs once, in random order. One workload then gives one pair of values a
//! block, and everything here works on the logarithm of their ratio: [`LogRatios`]. Slow drift of the
//! machine is in both values of a pair and cancels.
//!
//! * [`estimate`]: Hodges–Lehmann estimate with an exact Wilcoxon interval, for one workload.
//! * [`holm`]: which of several workloads differ from no effect.
//! * [`class_mean`]: geometric mean over the workloads of a class, by resampling whole blocks.
//! * [`compare_classes`]: change of a class's mean between two runs.
//! * [`precision`]: when a run may stop, and the smallest effect that it could have found.
//!
//! Logarithms are natural. An effect of `d` is an overhead of `exp(d) - 1`: see [`overhead`].
//!
//! ```
//! use casemate_statistics::{Better, Confidence, LogRatios, estimate, overhead};
//!
//! // Nanoseconds of one workload in eight blocks, plain and encrypted.
//! let plain = [100.0, 101.0, 99.0, 100.5, 102.0, 100.0, 99.5, 101.5];
//! let encrypted = [104.1, 105.0, 103.2, 104.4, 106.3, 104.2, 103.3, 105.6];
//! let ratios = LogRatios::new(&plain, &encrypted, Better::Lower)?;
//! let found = estimate(&ratios, Confidence::P95);
//! let interval = found.interval.expect("at least six blocks");
//! assert!((overhead(found.effect) - 0.04).abs() < 0.003);
//! assert!(overhead(interval.low) > 0.03 && overhead(interval.high) < 0.05);
//! # Ok::<(), casemate_statistics::RatioError>(())
//! ```
//!
//! The crate uses no clock, no files and no randomness but the caller's seed: the same input gives the
//! same numbers everywhere.

#![forbid(unsafe_code)]

mod class;
mod estimate;
mod holm;
mod precision;
mod random;
mod ratio;
mod signed_rank;

pub use class::{ClassError, ClassMean, class_mean, compare_classes};
pub use estimate::{Confidence, ConfidenceError, Equivalence, Estimate, Interval, estimate};
pub use holm::holm;
pub use precision::{Precision, StopRule, precision};
pub use random::Random;
pub use ratio::{Better, LogRatios, RatioError};

/// Converts an effect in natural logarithms to an overhead: 0.05 means 5 % more time for the same work.
#[must_use]
pub fn overhead(effect: f64) -> f64 {
    effect.exp_m1()
}
