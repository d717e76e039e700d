//! One workload: the Hodges–Lehmann estimate and its Wilcoxon interval.

use thiserror::Error;

use crate::ratio::LogRatios;
use crate::signed_rank;

/// Two-sided confidence of an interval, above 0.5 and below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence(f64);

/// A confidence that is not above 0.5 and below 1.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[error("confidence {0} is not between 0.5 and 1: use 0.95, for example")]
pub struct ConfidenceError(pub f64);

impl Confidence {
    /// 95 %.
    pub const P95: Self = Self(0.95);
    /// 90 %, which an equivalence test at 5 % uses.
    pub const P90: Self = Self(0.90);

    /// Checks a confidence such as 0.95.
    ///
    /// # Errors
    /// The value is not above 0.5 and below 1.
    pub fn new(value: f64) -> Result<Self, ConfidenceError> {
        if value > 0.5 && value < 1.0 { Ok(Self(value)) } else { Err(ConfidenceError(value)) }
    }

    /// The probability outside of the interval on one side.
    #[must_use]
    pub fn tail(self) -> f64 {
        (1.0 - self.0) / 2.0
    }
}

/// Both ends of an interval, in natural logarithms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies in the closed interval.
    #[must_use]
    pub fn contains(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Half of the distance between the ends.
    #[must_use]
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// Estimated effect of an arm on one workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Blocks that the estimate rests on.
    pub blocks: usize,
    /// Hodges–Lehmann estimate: median of the means of all pairs, each value paired with itself included.
    pub effect: f64,
    /// Confidence interval; `None` with so few blocks that no interval has the confidence (5 for 95 %).
    pub interval: Option<Interval>,
    /// Two-sided probability, under no effect, of a signed-rank statistic at least as extreme. Below
    /// 1 - confidence exactly when the interval excludes 0.
    pub p_value: f64,
}

/// Result of testing that an effect is smaller than a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equivalence {
    /// The 90 % interval lies inside of the bound: the effect is smaller, at a level of 5 %.
    Smaller,
    /// The interval reaches beyond the bound, or there are too few blocks for one.
    NotShown,
}

/// Estimates the effect of an arm from its log ratios.
#[must_use]
pub fn estimate(ratios: &LogRatios, confidence: Confidence) -> Estimate {
    let walsh = walsh_averages(ratios.values());
    let cumulative = signed_rank::cumulative(ratios.values().len());
    Estimate {
        blocks: ratios.values().len(),
        effect: median(&walsh),
        interval: interval(&walsh, &cumulative, confidence),
        p_value: p_value(&walsh, &cumulative),
    }
}

impl Equivalence {
    /// Tests whether the effect is smaller than `bound` in both directions, by two one-sided tests at
    /// 5 %. `bound` is an overhead, such as 0.01 for 1 %; the interval is compared with ±ln(1 + bound).
    #[must_use]
    pub fn test(ratios: &LogRatios, bound: f64) -> Self {
        let limit = bound.ln_1p();
        match estimate(ratios, Confidence::P90).interval {
            Some(interval) if -limit < interval.low && interval.high < limit => Self::Smaller,
            _ => Self::NotShown,
        }
    }
}

/// Means of all pairs, each value paired with itself included, in ascending order.
fn walsh_averages(values: &[f64]) -> Vec<f64> {
    let mut averages = Vec::with_capacity(values.len() * (values.len() + 1) / 2);
    for (index, a) in values.iter().enumerate() {
        averages.extend(values[index..].iter().map(|b| f64::midpoint(*a, *b)));
    }
    averages.sort_by(f64::total_cmp);
    averages
}

/// The Hodges–Lehmann estimate of at least one value.
pub(crate) fn hodges_lehmann(values: &[f64]) -> f64 {
    median(&walsh_averages(values))
}

/// The median of sorted values, of which there is at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// From the k-th smallest to the k-th largest average, for the largest k with P(T < k) within the tail.
fn interval(walsh: &[f64], cumulative: &[f64], confidence: Confidence) -> Option<Interval> {
    let k = cumulative.partition_point(|&p| p <= confidence.tail());
    let low = *walsh.get(k.checked_sub(1)?)?;
    let high = *walsh.get(walsh.len().checked_sub(k)?)?;
    Some(Interval { low, high })
}

/// An average of 0 counts for no effect in both directions, which keeps the test conservative with ties.
fn p_value(walsh: &[f64], cumulative: &[f64]) -> f64 {
    let below = walsh.partition_point(|&average| average < 0.0);
    let above = walsh.len() - walsh.partition_point(|&average| average <= 0.0);
    // The more one-sided of both counts; what is left is the statistic.
    let statistic = walsh.len() - below.max(above);
    (2.0 * cumulative[statistic]).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ratios(values: &[f64]) -> LogRatios {
        LogRatios::from_logarithms(values.to_vec()).expect("finite values")
    }

    #[test]
    fn confidence_out_of_range_is_rejected() {
        for bad in [0.0, 0.5, 1.0, 1.5, f64::NAN] {
            Confidence::new(bad).expect_err("out of range");
        }
    }

    /// P(T = 0) is 1/32 for 5 blocks, above 2.5 %, and 1/64 for 6.
    #[test]
    fn five_blocks_are_too_few_for_95_percent() {
        let values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        assert_eq!(estimate(&ratios(&values[..5]), Confidence::P95).interval, None);
        let six = estimate(&ratios(&values), Confidence::P95).interval;
        assert_eq!(six, Some(Interval { low: 0.1, high: 0.6 }));
    }

    #[test]
    fn one_block_gives_an_estimate_without_an_interval() {
        let one = estimate(&ratios(&[0.25]), Confidence::P95);
        assert_eq!((one.effect, one.interval, one.p_value), (0.25, None, 1.0));
    }

    #[test]
    fn equal_values_show_no_effect() {
        let zero = estimate(&ratios(&[0.0; 20]), Confidence::P95);
        assert_eq!((zero.effect, zero.p_value), (0.0, 1.0));
        assert_eq!(zero.interval, Some(Interval { low: 0.0, high: 0.0 }));
    }

    #[test]
    fn equivalence_needs_an_interval_inside_of_the_bound() {
        let small: Vec<f64> = (0..20).map(|i| f64::from(i - 10) * 1e-4).collect();
        assert_eq!(Equivalence::test(&ratios(&small), 0.01), Equivalence::Smaller);
        assert_eq!(Equivalence::test(&ratios(&small), 0.0001), Equivalence::NotShown);
        assert_eq!(Equivalence::test(&ratios(&[0.0; 3]), 0.01), Equivalence::NotShown);
    }

    /// Computed once with SciPy 1.17.1: `wilcoxon(x, method="exact")`, and the interval by inverting it.
    #[test]
    fn twelve_blocks_match_scipy() {
        let values =
            [0.031, -0.012, 0.047, 0.008, 0.022, 0.063, -0.005, 0.038, 0.019, 0.055, 0.014, 0.026];
        let found = estimate(&ratios(&values), Confidence::P95);
        let interval = found.interval.expect("twelve blocks");
        let have = [found.effect, found.p_value, interval.low, interval.high];
        for (have, want) in have.iter().zip([0.02525, 0.003_417_968_75, 0.0095, 0.041]) {
            assert!((have - want).abs() < 1e-12, "{have} {want}");
        }
    }

    proptest! {
        #[test]
        fn interval_excludes_zero_exactly_when_p_is_small(
            values in prop::collection::vec(-8i8..=12, 6..30),
        ) {
            // Small integers: many ties and zeros.
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let found = estimate(&ratios(&values), Confidence::P95);
            let interval = found.interval.expect("at least six blocks");
            prop_assert!(interval.contains(found.effect));
            prop_assert_eq!(!interval.contains(0.0), found.p_value <= 0.05);
        }

        #[test]
        fn estimate_moves_with_its_data(values in prop::collection::vec(-1.0..1.0f64, 6..30), by in -1.0..1.0f64) {
            let moved: Vec<f64> = values.iter().map(|value| value + by).collect();
            let (a, b) = (estimate(&ratios(&values), Confidence::P95), estimate(&ratios(&moved), Confidence::P95));
            prop_assert!((a.effect + by - b.effect).abs() < 1e-9);
        }
    }
}
