//! When a run may stop, and what it could have found.

use crate::estimate::{Confidence, Estimate, Interval, estimate};
use crate::ratio::LogRatios;
use crate::signed_rank::normal_quantile;

/// Chance with which the smallest detectable effect would have been found.
const POWER: f64 = 0.8;

/// Stops by the width of the interval and never by significance: a run that stops when it finds something
/// finds too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StopRule {
    /// Half width of the 95 % interval to reach, as an overhead (0.01 for ±1 %).
    pub half_width: f64,
    /// Blocks to run in any case.
    pub least: usize,
    /// Blocks after which to stop in any case.
    pub most: usize,
}

impl Default for StopRule {
    fn default() -> Self {
        Self { half_width: 0.01, least: 20, most: 40 }
    }
}

impl StopRule {
    /// Whether a run with these estimates may stop; all of them count.
    #[must_use]
    pub fn is_met(&self, blocks: usize, intervals: &[Option<Interval>]) -> bool {
        let limit = self.half_width.ln_1p();
        let narrow = |interval: &Option<Interval>| {
            interval.is_some_and(|interval| interval.half_width() <= limit)
        };
        blocks >= self.most || blocks >= self.least && intervals.iter().all(narrow)
    }
}

/// How exact an estimate is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Half width of the interval, in natural logarithms.
    pub half_width: f64,
    /// The smallest effect that a run of this size and noise finds in 80 of 100 cases, in natural
    /// logarithms; by the normal approximation of the estimate's distribution.
    pub detectable: f64,
}

/// The precision of a run's 95 % interval. `None` with too few blocks for an interval.
#[must_use]
pub fn precision(ratios: &LogRatios) -> Option<Precision> {
    let Estimate { interval, .. } = estimate(ratios, Confidence::P95);
    let half_width = interval?.half_width();
    let z = normal_quantile(1.0 - Confidence::P95.tail());
    Some(Precision { half_width, detectable: half_width * (z + normal_quantile(POWER)) / z })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_stops_by_width_or_at_its_limit() {
        let rule = StopRule::default();
        let narrow = Some(Interval { low: 0.2, high: 0.21 });
        let wide = Some(Interval { low: 0.0, high: 0.1 });
        assert!(rule.is_met(20, &[narrow]));
        assert!(!rule.is_met(19, &[narrow]));
        assert!(!rule.is_met(39, &[narrow, wide]));
        assert!(!rule.is_met(39, &[None]));
        assert!(rule.is_met(40, &[wide]));
    }

    /// A significant effect with a wide interval goes on; a null effect with a narrow one stops.
    #[test]
    fn significance_does_not_stop_a_run() {
        let rule = StopRule::default();
        assert!(!rule.is_met(30, &[Some(Interval { low: 0.5, high: 0.6 })]));
        assert!(rule.is_met(30, &[Some(Interval { low: -0.005, high: 0.005 })]));
    }

    #[test]
    fn detectable_effect_is_beyond_the_half_width() {
        let values = (0..20).map(|i| f64::from(i % 5) * 0.01).collect();
        let found =
            precision(&LogRatios::from_logarithms(values).expect("finite")).expect("20 blocks");
        assert!((found.detectable / found.half_width - 1.4294).abs() < 1e-3, "{found:?}");
    }
}
