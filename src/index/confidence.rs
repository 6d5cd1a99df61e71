//! How sure a measured recall is: the exact lower bound of Clopper and Pearson (1934), one-sided, on as many trials as the
//! answers are worth.
//!
//! A trial is one true neighbour that is found or not. Neighbours of one query are found or missed together, so queries × k
//! trials say less than as many independent ones would. Korn and Graubard (1998) divide the trials by the design effect: the
//! variance between queries over the variance that independent trials would have. The bound is Clopper and Pearson's on what
//! is left, never on more than there are. Pure arithmetic; must not know indexes.

/// One-sided confidence of the gate.
pub(super) const CONFIDENCE: f64 = 0.95;

/// Halvings of an interval of length 1 until it is shorter than an f64 can tell.
const HALVINGS: usize = 60;

/// A share that was measured, and what it proves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proven {
    /// The share of successes.
    pub(super) mean: f64,
    /// With the confidence asked for, the true share is not below this.
    pub(super) lower: f64,
    /// Queries × k.
    pub(super) trials: f64,
    /// Independent trials that would vary as these did; at most `trials`.
    pub(super) effective: f64,
    /// Standard deviation between queries.
    pub(super) spread: f64,
}

/// What the recalls of queries with `k` neighbours each prove.
pub(super) fn prove(recalls: &[f64], k: usize, confidence: f64) -> Proven {
    let queries = recalls.len() as f64;
    let trials = queries * k as f64;
    let mean = recalls.iter().sum::<f64>() / queries.max(1.0);
    if trials == 0.0 {
        return Proven { mean, lower: 0.0, trials: 0.0, effective: 0.0, spread: 0.0 };
    }
    let squares: f64 = recalls.iter().map(|recall| (recall - mean).powi(2)).sum();
    let variance = if queries > 1.0 { squares / (queries - 1.0) } else { 0.0 };
    let of_the_mean = variance / queries;
    // Without variance nothing tells the queries apart: all trials count.
    let worth = if of_the_mean > 0.0 { mean * (1.0 - mean) / of_the_mean } else { trials };
    let effective = worth.min(trials);
    Proven {
        mean,
        lower: lower_bound(mean * effective, effective, confidence),
        trials,
        effective,
        spread: variance.sqrt(),
    }
}

/// The share that is so small that as many successes or more would come with a chance of 1 − `confidence` only.
pub(super) fn lower_bound(successes: f64, trials: f64, confidence: f64) -> f64 {
    let alpha = 1.0 - confidence;
    if trials <= 0.0 || successes <= 0.0 {
        return 0.0;
    }
    if successes >= trials {
        return alpha.powf(trials.recip());
    }
    // P(at least `successes`) at the share p is the regularised incomplete beta function, which grows with p.
    bisect(|share| incomplete_beta(successes, trials - successes + 1.0, share) < alpha)
}

/// The smallest measured share of `trials` whose lower bound reaches `target`; above 1 if even a perfect one does not.
pub(super) fn pass_mark(target: f64, trials: f64, confidence: f64) -> f64 {
    if lower_bound(trials, trials, confidence) < target {
        return f64::INFINITY;
    }
    bisect(|share| lower_bound(share * trials, trials, confidence) < target)
}

/// The point of 0 to 1 at which `is_below` turns from true to false.
fn bisect(is_below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if is_below(middle) { low = middle } else { high = middle }
    }
    high
}

/// I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8), on the side where it converges quickly.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(a, b, x) / a
    } else {
        1.0 - front * fraction(b, a, 1.0 - x) / b
    }
}

/// The continued fraction, from the left (modified Lentz, Thompson and Barnett 1986): about √max(a, b) steps.
fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const LEAST: f64 = 1e-300;
    const STEPS: u32 = 100_000;
    let away_from_zero = |value: f64| if value.abs() < LEAST { LEAST } else { value };
    let mut c = 1.0;
    let mut d = away_from_zero(1.0 - (a + b) * x / (a + 1.0)).recip();
    let mut value = d;
    for step in 1..STEPS {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = away_from_zero(1.0 + even * d).recip();
        c = away_from_zero(1.0 + even / c);
        value *= d * c;
        d = away_from_zero(1.0 + odd * d).recip();
        c = away_from_zero(1.0 + odd / c);
        value *= d * c;
        if (d * c - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    value
}

/// ln Γ(x) for x > 0 by Stirling's series, which is exact to an f64 from 10 on; smaller ones by the recurrence.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut below) = (x, 0.0);
    while x < 10.0 {
        below += x.ln();
        x += 1.0;
    }
    let (inverse, square) = (x.recip(), (x * x).recip());
    let series = 1.0 / 12.0
        - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square * (1.0 / 1680.0 - square * (1.0 / 1188.0))));
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + inverse * series - below
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Made by `scripts/reference_bounds.py` with scipy.
    const REFERENCE: &str = include_str!("../../tests/data/bounds.tsv");

    #[test]
    fn bounds_are_those_of_scipy() {
        let mut compared = 0;
        for line in REFERENCE.lines().filter(|line| !line.starts_with('#')) {
            let numbers: Vec<f64> = line.split('\t').map(|number| number.parse().unwrap()).collect();
            let [successes, trials, confidence, want] = numbers[..] else { panic!("{line}") };
            let got = lower_bound(successes, trials, confidence);
            assert!((got - want).abs() <= 1e-9 * want.max(1e-3), "{line}: {got}");
            compared += 1;
        }
        assert!(compared > 100, "{compared}");
    }

    #[test]
    fn the_pass_marks_that_the_documentation_states() {
        let rounded = |target, trials| (pass_mark(target, trials, CONFIDENCE) * 1e4).round() / 1e4;
        assert_eq!([rounded(0.95, 2560.0), rounded(0.99, 2560.0)], [0.9572, 0.9933]);
        assert_eq!([rounded(0.95, 1280.0), rounded(0.99, 1280.0)], [0.9602, 0.9947]);
        // 0.95^59 is below 0.05, 0.95^58 is not; 299 at 0.99.
        assert_eq!([59.0, 58.0].map(|n| pass_mark(0.95, n, CONFIDENCE) <= 1.0), [true, false]);
        assert_eq!([299.0, 298.0].map(|n| pass_mark(0.99, n, CONFIDENCE) <= 1.0), [true, false]);
    }

    #[test]
    fn queries_that_agree_with_themselves_count_less() {
        // The same 95 of 100 neighbours: one missing in half of the queries, or all of them missing in one of twenty.
        let even: Vec<f64> = (0..200).map(|n| if n % 2 == 0 { 1.0 } else { 0.9 }).collect();
        let lumped: Vec<f64> = (0..200).map(|n| if n % 20 == 0 { 0.0 } else { 1.0 }).collect();
        let (even, lumped) = (prove(&even, 10, CONFIDENCE), prove(&lumped, 10, CONFIDENCE));
        assert!((even.mean - 0.95).abs() < 1e-12 && (lumped.mean - 0.95).abs() < 1e-12);
        assert_eq!(even.effective, 2000.0, "never more than there are");
        assert!((lumped.effective - 199.0).abs() < 1.0, "as many as queries: {}", lumped.effective);
        assert!(lumped.lower < 0.92 && even.lower > 0.94, "{lumped:?} {even:?}");
        assert_eq!(prove(&[], 10, CONFIDENCE).lower, 0.0);
        // The only row of a bank has no neighbours, and lacks none of them.
        let only = prove(&[1.0], 0, CONFIDENCE);
        assert_eq!((only.mean, only.lower), (1.0, 0.0));
        assert_eq!(prove(&[1.0; 6], 10, CONFIDENCE).lower, 0.05_f64.powf(1.0 / 60.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Of many samples of independent trials at most one in twenty proves more than is true.
        #[test]
        fn the_bound_covers_what_is_true(seed in any::<u64>(), trials in 20u32..600, share in 0.5f64..0.999) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            const SAMPLES: u32 = 1500;
            let mut covered = 0;
            for _ in 0..SAMPLES {
                let successes = (0..trials).filter(|_| rng.random::<f64>() < share).count();
                covered += u32::from(lower_bound(successes as f64, f64::from(trials), CONFIDENCE) <= share);
            }
            // Four standard errors of the simulation itself.
            let slack = 4.0 * (0.05 * 0.95 / f64::from(SAMPLES)).sqrt();
            prop_assert!(f64::from(covered) / f64::from(SAMPLES) >= 0.95 - slack, "{covered} of {SAMPLES}");
        }
    }

    /// Recalls as an index gives them: a few queries, those in thin regions, lose most of their neighbours.
    fn lumped(rng: &mut ChaCha8Rng) -> Vec<f64> {
        let one = |rng: &mut ChaCha8Rng| {
            let share = if rng.random::<f64>() < 0.1 { 0.6 } else { 0.99 };
            (0..10).filter(|_| rng.random::<f64>() < share).count() as f64 / 10.0
        };
        (0..256).map(|_| one(rng)).collect()
    }

    #[test]
    fn where_neighbours_are_missed_together_the_plain_bound_claims_too_much_and_ours_does_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let truth = 0.1 * 0.6 + 0.9 * 0.99;
        const SAMPLES: u32 = 2000;
        let (mut ours, mut plain) = (0, 0);
        for _ in 0..SAMPLES {
            let proven = prove(&lumped(&mut rng), 10, CONFIDENCE);
            ours += u32::from(proven.lower <= truth);
            plain += u32::from(lower_bound(proven.mean * proven.trials, proven.trials, CONFIDENCE) <= truth);
        }
        let share = |covered: u32| f64::from(covered) / f64::from(SAMPLES);
        assert!(share(plain) < 0.90, "{}", share(plain));
        assert!(share(ours) >= 0.94, "{}", share(ours));
    }
}
