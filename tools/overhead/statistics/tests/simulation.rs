//! The protocol on simulated machines: noise that is correlated in time, slow drift, rare bursts.
//!
//! Random blocks must cover the true effect as often as they promise and must not find effects that do
//! not exist. Running one arm after the other must fail the same test: a simulation that this design
//! passes would show nothing.

use casemate_statistics::{Better, Confidence, LogRatios, Random, estimate};

/// Runs per cell. The standard error of a coverage of 0.95 is then 0.011.
const RUNS: u64 = 400;

/// A machine that is not quiet.
struct Machine {
    random: Random,
    /// Standard deviation of the logarithm of a sample.
    noise: f64,
    /// Change of the logarithm from the start to the end of a run.
    drift: f64,
    /// State of the correlated part.
    state: f64,
}

impl Machine {
    /// Correlation of neighbouring samples.
    const CORRELATION: f64 = 0.5;
    /// Share of samples that something else disturbs, and the logarithm of their slow-down.
    const BURST: (f64, f64) = (0.01, 0.10);

    fn new(seed: u64, noise: f64, drift: f64) -> Self {
        let mut random = Random::new(seed);
        let direction = if random.unit() < 0.5 { -1.0 } else { 1.0 };
        Self { random, noise, drift: drift * direction, state: 0.0 }
    }

    /// A standard normal number (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.random.unit()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.random.unit()).cos()
    }

    /// Time of one sample with the true effect `effect`, at `progress` (0 to 1) of the run.
    fn sample(&mut self, effect: f64, progress: f64) -> f64 {
        let fresh = self.normal() * self.noise * (1.0 - Self::CORRELATION.powi(2)).sqrt();
        self.state = Self::CORRELATION * self.state + fresh;
        let burst = if self.random.unit() < Self::BURST.0 { Self::BURST.1 } else { 0.0 };
        (effect + self.state + self.drift * progress + burst).exp()
    }
}

/// What became of the runs of one cell.
struct Cell {
    /// Share of intervals that hold the true effect.
    coverage: f64,
    /// Share of intervals that lie above 0.
    found: f64,
}

fn cell(run: impl Fn(u64) -> LogRatios, effect: f64) -> Cell {
    let intervals = (0..RUNS).map(|seed| {
        estimate(&run(seed), Confidence::P95).interval.expect("enough blocks for an interval")
    });
    let (mut covered, mut above) = (0.0, 0.0);
    for interval in intervals {
        covered += f64::from(u8::from(interval.contains(effect)));
        above += f64::from(u8::from(interval.low > 0.0));
    }
    Cell { coverage: covered / RUNS as f64, found: above / RUNS as f64 }
}

/// Both arms once in each block, in random order.
fn in_blocks(blocks: u32, noise: f64, drift: f64, effect: f64) -> Cell {
    let run = |seed| {
        let mut machine = Machine::new(seed, noise, drift);
        let (mut plain, mut arm) = (Vec::new(), Vec::new());
        for block in 0..blocks {
            let mut order = [false, true];
            machine.random.shuffle(&mut order);
            for (place, encrypted) in order.into_iter().enumerate() {
                let progress = (f64::from(block) + place as f64 / 2.0) / f64::from(blocks);
                let (values, effect) =
                    if encrypted { (&mut arm, effect) } else { (&mut plain, 0.0) };
                values.push(machine.sample(effect, progress));
            }
        }
        LogRatios::new(&plain, &arm, Better::Lower).expect("positive times")
    };
    cell(run, effect)
}

/// All samples of one arm, then all of the other.
fn one_after_the_other(blocks: u32, noise: f64, drift: f64, effect: f64) -> Cell {
    let run = |seed| {
        let mut machine = Machine::new(seed, noise, drift);
        let total = f64::from(2 * blocks);
        let plain: Vec<f64> =
            (0..blocks).map(|i| machine.sample(0.0, f64::from(i) / total)).collect();
        let later = |i| f64::from(blocks + i) / total;
        let arm: Vec<f64> = (0..blocks).map(|i| machine.sample(effect, later(i))).collect();
        LogRatios::new(&plain, &arm, Better::Lower).expect("positive times")
    };
    cell(run, effect)
}

#[test]
fn random_blocks_cover_the_true_effect() {
    for (noise, drift) in [(0.005, 0.0), (0.01, 0.02), (0.03, 0.05)] {
        for blocks in [10, 20] {
            for effect in [0.0, 0.01, 0.02, 0.05] {
                let Cell { coverage, found } = in_blocks(blocks, noise, drift, effect);
                let name =
                    format!("noise {noise}, drift {drift}, {blocks} blocks, effect {effect}");
                assert!((0.92..=0.98).contains(&coverage), "{name}: coverage {coverage}");
                if effect == 0.0 {
                    assert!(found < 0.06, "{name}: {found} of the runs find an effect");
                }
            }
        }
    }
}

#[test]
fn random_blocks_find_an_effect_of_their_resolution() {
    let found = in_blocks(20, 0.01, 0.02, 0.02).found;
    assert!(found > 0.95, "{found}");
    let found = in_blocks(20, 0.03, 0.05, 0.05).found;
    assert!(found > 0.9, "{found}");
}

#[test]
fn one_arm_after_the_other_fails_under_drift() {
    for (noise, drift) in [(0.01, 0.02), (0.03, 0.05)] {
        let Cell { coverage, found } = one_after_the_other(20, noise, drift, 0.0);
        assert!(coverage < 0.8, "coverage {coverage}: the simulated drift is too small to matter");
        assert!(found > 0.06, "false findings {found}: the simulated drift is too small to matter");
    }
}
