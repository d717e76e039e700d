//! A class of workloads: geometric mean and its interval by resampling blocks.

use thiserror::Error;

use crate::estimate::{Confidence, Interval, hodges_lehmann};
use crate::random::Random;
use crate::ratio::LogRatios;

/// Resamples of a class: the ends of a 95 % interval then vary by about 2 % of its width.
const RESAMPLES: usize = 2000;

/// Effect of an arm on a class of workloads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassMean {
    /// Mean of the workloads' estimates: the logarithm of the geometric mean of their ratios.
    pub effect: f64,
    /// Percentile interval over resampled blocks.
    pub interval: Interval,
}

/// Reason why a class's mean cannot be computed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ClassError {
    /// No workloads.
    #[error("the class contains no workloads")]
    NoWorkloads,
    /// Workloads with different numbers of blocks.
    #[error(
        "workload {workload} has {blocks} blocks, the first {first}: use blocks that have every workload"
    )]
    Unequal {
        /// Index of the workload, from 0.
        workload: usize,
        /// Its blocks.
        blocks: usize,
        /// Blocks of the first workload.
        first: usize,
    },
}

/// The mean over `workloads`, whose element i is of the same block in each. All workloads of a block are
/// resampled together, since what disturbs one disturbs its neighbours.
///
/// # Errors
/// There are no workloads, or they differ in the number of blocks.
pub fn class_mean(
    workloads: &[LogRatios],
    confidence: Confidence,
    seed: u64,
) -> Result<ClassMean, ClassError> {
    let blocks = check(workloads)?;
    let mut random = Random::new(seed);
    let means = (0..RESAMPLES).map(|_| resampled(workloads, blocks, &mut random));
    Ok(ClassMean { effect: mean(workloads), interval: percentiles(means.collect(), confidence) })
}

/// The change of a class's mean from run `before` to run `after`: positive where the arm became dearer.
/// Blocks are resampled within each run.
///
/// # Errors
/// A run has no workloads, or workloads that differ in the number of blocks.
pub fn compare_classes(
    before: &[LogRatios],
    after: &[LogRatios],
    confidence: Confidence,
    seed: u64,
) -> Result<ClassMean, ClassError> {
    let blocks = (check(before)?, check(after)?);
    let mut random = Random::new(seed);
    let changes = (0..RESAMPLES).map(|_| {
        resampled(after, blocks.1, &mut random) - resampled(before, blocks.0, &mut random)
    });
    let interval = percentiles(changes.collect(), confidence);
    Ok(ClassMean { effect: mean(after) - mean(before), interval })
}

/// The number of blocks, which is the same in all workloads.
fn check(workloads: &[LogRatios]) -> Result<usize, ClassError> {
    let first = workloads.first().ok_or(ClassError::NoWorkloads)?.values().len();
    for (workload, ratios) in workloads.iter().enumerate() {
        let blocks = ratios.values().len();
        if blocks != first {
            return Err(ClassError::Unequal { workload, blocks, first });
        }
    }
    Ok(first)
}

/// Mean of the workloads' Hodges–Lehmann estimates.
fn mean(workloads: &[LogRatios]) -> f64 {
    let effects = workloads.iter().map(|ratios| hodges_lehmann(ratios.values()));
    effects.sum::<f64>() / workloads.len() as f64
}

/// Mean of the workloads' estimates over blocks that are drawn with replacement.
fn resampled(workloads: &[LogRatios], blocks: usize, random: &mut Random) -> f64 {
    let drawn: Vec<usize> = (0..blocks).map(|_| random.below(blocks)).collect();
    let effects = workloads.iter().map(|ratios| {
        let values: Vec<f64> = drawn.iter().map(|&block| ratios.values()[block]).collect();
        hodges_lehmann(&values)
    });
    effects.sum::<f64>() / workloads.len() as f64
}

/// The interval between the percentiles that `confidence` leaves outside.
fn percentiles(mut values: Vec<f64>, confidence: Confidence) -> Interval {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    // Linear interpolation between order statistics (R's type 7).
    let at = |p: f64| {
        let (position, mut index) = (p * last as f64, 0);
        while index < last && (index + 1) as f64 <= position {
            index += 1;
        }
        let above = values[(index + 1).min(last)];
        values[index] + (above - values[index]) * (position - index as f64)
    };
    Interval { low: at(confidence.tail()), high: at(1.0 - confidence.tail()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(values: &[f64]) -> LogRatios {
        LogRatios::from_logarithms(values.to_vec()).expect("finite values")
    }

    #[test]
    fn unequal_or_missing_workloads_are_rejected() {
        assert_eq!(class_mean(&[], Confidence::P95, 1), Err(ClassError::NoWorkloads));
        let unequal = [ratios(&[0.1, 0.2]), ratios(&[0.1])];
        let error = ClassError::Unequal { workload: 1, blocks: 1, first: 2 };
        assert_eq!(class_mean(&unequal, Confidence::P95, 1), Err(error));
    }

    #[test]
    fn mean_of_constant_workloads_is_exact() {
        let class = [ratios(&[0.1; 10]), ratios(&[0.3; 10])];
        let found = class_mean(&class, Confidence::P95, 1).expect("a class");
        for value in [found.effect, found.interval.low, found.interval.high] {
            assert!((value - 0.2).abs() < 1e-12, "{found:?}");
        }
        let change =
            compare_classes(&class[..1], &class[1..], Confidence::P95, 1).expect("two runs");
        assert!((change.effect - 0.2).abs() < 1e-12, "{change:?}");
    }

    #[test]
    fn same_seed_gives_the_same_interval() {
        let values: Vec<f64> = (0..20).map(|i| f64::from(i * i % 7) * 0.01).collect();
        let class = [ratios(&values)];
        let (a, b) =
            (class_mean(&class, Confidence::P95, 5), class_mean(&class, Confidence::P95, 5));
        assert_eq!(a, b);
        assert!(a.is_ok_and(|found| found.interval.contains(found.effect)));
    }

    /// R: `quantile(1:10, c(0.025, 0.975))` is 1.225 and 9.775.
    #[test]
    fn percentiles_match_r() {
        let found = percentiles((1..=10).rev().map(f64::from).collect(), Confidence::P95);
        assert!((found.low - 1.225).abs() < 1e-9 && (found.high - 9.775).abs() < 1e-9, "{found:?}");
    }
}
