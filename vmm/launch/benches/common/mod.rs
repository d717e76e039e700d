//! Timing that the benchmarks share.

use std::time::{Duration, Instant};

/// Runs all in turn for about four seconds, so that noise meets them alike; the median of each, in
/// milliseconds.
pub(crate) fn medians<const N: usize>(mut runs: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::new());
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end || times[0].len() < 5 {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    })
}
