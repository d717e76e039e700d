//! Pairs of values, one a block, as logarithms of their ratios.

use thiserror::Error;

/// Which direction of a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Less is better: times, exits, misses.
    Lower,
    /// More is better: throughput, requests per second.
    Higher,
}

/// Logarithms of the cost of an arm relative to the reference arm, one per block, in block order.
///
/// Positive means that the arm is worse than the reference, whatever the direction of the metric. All
/// values are finite, and there is at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRatios(Vec<f64>);

/// Reason why values are not pairs.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum RatioError {
    /// No blocks.
    #[error("there are no blocks: run at least one")]
    NoBlocks,
    /// The arms do not have the same blocks.
    #[error(
        "the reference arm has {reference} blocks and the other {arm}: use blocks that have both"
    )]
    Unpaired {
        /// Blocks of the reference arm.
        reference: usize,
        /// Blocks of the other arm.
        arm: usize,
    },
    /// A value whose logarithm does not exist.
    #[error("block {block}: {value} is not a positive number")]
    NotPositive {
        /// Index of the block, from 0.
        block: usize,
        /// The value.
        value: f64,
    },
    /// A ratio that a logarithm cannot represent.
    #[error("block {block}: the ratio {value} is not finite")]
    NotFinite {
        /// Index of the block, from 0.
        block: usize,
        /// The ratio.
        value: f64,
    },
}

impl LogRatios {
    /// Pairs the values of two arms; `reference[i]` and `arm[i]` are of the same block.
    ///
    /// # Errors
    /// There are no blocks, the arms differ in length, or a value is zero, negative, infinite or not a
    /// number.
    pub fn new(reference: &[f64], arm: &[f64], better: Better) -> Result<Self, RatioError> {
        if reference.len() != arm.len() {
            return Err(RatioError::Unpaired { reference: reference.len(), arm: arm.len() });
        }
        let logarithms =
            reference.iter().zip(arm).enumerate().map(|(block, (&reference, &arm))| {
                Ok(match better {
                    Better::Lower => logarithm(block, arm)? - logarithm(block, reference)?,
                    Better::Higher => logarithm(block, reference)? - logarithm(block, arm)?,
                })
            });
        Self::from_logarithms(logarithms.collect::<Result<_, _>>()?)
    }

    /// Takes logarithms of ratios that were computed elsewhere.
    ///
    /// # Errors
    /// There are none, or one is infinite or not a number.
    pub fn from_logarithms(values: Vec<f64>) -> Result<Self, RatioError> {
        if values.is_empty() {
            return Err(RatioError::NoBlocks);
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(block) => Err(RatioError::NotFinite { block, value: values[block] }),
            None => Ok(Self(values)),
        }
    }

    /// The logarithms, in block order.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

/// The logarithm of a positive, finite value.
fn logarithm(block: usize, value: f64) -> Result<f64, RatioError> {
    if value > 0.0 && value.is_finite() {
        Ok(value.ln())
    } else {
        Err(RatioError::NotPositive { block, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cost_is_positive_in_both_directions() {
        let time = LogRatios::new(&[100.0], &[105.0], Better::Lower).expect("pairs");
        let rate = LogRatios::new(&[105.0], &[100.0], Better::Higher).expect("pairs");
        assert_eq!(time, rate);
        assert!((crate::overhead(time.values()[0]) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn values_without_a_logarithm_are_rejected() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            for (reference, arm) in [([1.0, bad], [1.0, 1.0]), ([1.0, 1.0], [1.0, bad])] {
                let error = LogRatios::new(&reference, &arm, Better::Lower).expect_err("bad value");
                assert!(matches!(error, RatioError::NotPositive { block: 1, .. }), "{error}");
            }
            if !bad.is_finite() {
                LogRatios::from_logarithms(vec![bad]).expect_err("not finite");
            }
        }
    }

    #[test]
    fn missing_blocks_are_rejected() {
        assert_eq!(LogRatios::new(&[], &[], Better::Lower), Err(RatioError::NoBlocks));
        let error = LogRatios::new(&[1.0, 2.0], &[1.0], Better::Lower).expect_err("unpaired");
        assert_eq!(error, RatioError::Unpaired { reference: 2, arm: 1 });
    }
}
