//! The null distribution of Wilcoxon's signed-rank statistic.
//!
//! The statistic T is the sum of the ranks of positive differences among n; each rank is positive with
//! probability 1/2. Equivalently it is the number of positive Walsh averages (means of pairs, each value
//! paired with itself included): Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods",
//! 3rd edition, sections 3.1 to 3.3.

/// Samples up to which the distribution is computed exactly; the normal approximation takes over above.
pub(crate) const EXACT: usize = 100;

/// Probabilities of T = 0, 1, …, n(n+1)/2.
fn probabilities(n: usize) -> Vec<f64> {
    let mut p = vec![0.0; n * (n + 1) / 2 + 1];
    p[0] = 1.0;
    let mut most = 0;
    for rank in 1..=n {
        most += rank;
        for sum in (0..=most).rev() {
            let with = if sum >= rank { p[sum - rank] } else { 0.0 };
            p[sum] = 0.5 * (p[sum] + with);
        }
    }
    p
}

/// Cumulative distribution: element t is P(T ≤ t).
pub(crate) fn cumulative(n: usize) -> Vec<f64> {
    if n > EXACT {
        return normal_cumulative(n);
    }
    let mut total = 0.0;
    let sums = probabilities(n).into_iter().map(|p| {
        total += p;
        total
    });
    sums.collect()
}

/// The normal approximation with a continuity correction of 1/2.
fn normal_cumulative(n: usize) -> Vec<f64> {
    let count = n as f64;
    let mean = count * (count + 1.0) / 4.0;
    let deviation = (count * (count + 1.0) * (2.0 * count + 1.0) / 24.0).sqrt();
    let most = n * (n + 1) / 2;
    (0..=most).map(|t| normal(((t as f64) + 0.5 - mean) / deviation)).collect()
}

/// Distribution function of the standard normal distribution, with an absolute error below 1e-7.
///
/// Abramowitz and Stegun, "Handbook of Mathematical Functions", formula 26.2.17.
pub(crate) fn normal(x: f64) -> f64 {
    const B: [f64; 5] =
        [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let polynomial = B.iter().rev().fold(0.0, |sum, b| (sum + b) * t);
    let tail = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * polynomial;
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// Quantile of the standard normal distribution for `0 < p < 1`, by bisection of [`normal`].
pub(crate) fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if normal(middle) < p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// n = 4: the 16 sign patterns give 1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1 for T = 0 to 10.
    #[test]
    fn distribution_of_four_matches_enumeration() {
        let counts: Vec<f64> = probabilities(4).iter().map(|p| p * 16.0).collect();
        assert_eq!(counts, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]);
    }

    /// Hollander, Wolfe and Chicken, table A.4: P(T ≥ 47) = 0.024 for n = 10.
    #[test]
    fn tail_of_ten_matches_the_published_table() {
        let upper = 1.0 - cumulative(10)[46];
        assert!((upper - 0.0244).abs() < 5e-5, "{upper}");
    }

    /// Intervals use the tails, where the approximation is better than in the middle.
    #[test]
    fn normal_approximation_continues_the_exact_distribution() {
        let (exact, normal) = (cumulative(EXACT), normal_cumulative(EXACT));
        let errors = exact.iter().zip(&normal).map(|(a, b)| (*a, (a - b).abs()));
        let worst = |up_to: f64| {
            errors.clone().filter(|(p, _)| *p < up_to).map(|e| e.1).fold(0.0, f64::max)
        };
        assert!(worst(1.1) < 1e-3 && worst(0.05) < 5e-4, "{} {}", worst(1.1), worst(0.05));
    }

    #[test]
    fn quantiles_of_the_normal_distribution_match_tables() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.959_964), (0.8, 0.841_621), (0.05, -1.644_854)] {
            assert!((normal_quantile(p) - z).abs() < 1e-5, "{p}");
        }
    }
}
