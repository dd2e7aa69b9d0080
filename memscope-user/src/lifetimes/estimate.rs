//! How far an estimate from sampled blocks can be from the truth.

/// In how many of a hundred cases an interval holds.
const CONFIDENCE: f64 = 0.95;

/// Bounds of a number that was estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// It is hardly less.
    pub low: f64,
    /// It is hardly more.
    pub high: f64,
}

/// How many standard deviations the bounds of each of so many figures are away if in 95 of
/// 100 cases all of them are to hold together (Šidák 1967); of one figure, by itself.
#[must_use]
pub fn deviations_for(figures: u32) -> f64 {
    let each = CONFIDENCE.powf(1.0 / f64::from(figures.max(1)));
    normal_deviate((1.0 - each) / 2.0)
}

/// What a normal variate exceeds with this probability, which is below one half. Abramowitz
/// and Stegun, Handbook of Mathematical Functions, 26.2.23; off by less than 0.00045.
fn normal_deviate(probability: f64) -> f64 {
    let t = (-2.0 * probability.ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    t - above / below
}

/// The deviate of Student's distribution that is exceeded as rarely as this normal one.
/// Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5. With one degree of freedom
/// it is the tangent, as the distribution is Cauchy's.
#[must_use]
pub(super) fn student_deviate(normal: f64, degrees: f64) -> f64 {
    let (z, n) = (normal, degrees);
    if n < 2.0 {
        return 1.0 / (std::f64::consts::PI * upper_tail(z)).tan();
    }
    let square = z * z;
    let terms = [
        z * (square + 1.0) / 4.0,
        z * ((5.0 * square + 16.0) * square + 3.0) / 96.0,
        z * (((3.0 * square + 19.0) * square + 17.0) * square - 15.0) / 384.0,
        z * ((((79.0 * square + 776.0) * square + 1482.0) * square - 1920.0) * square - 945.0)
            / 92_160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) / n) + z
}

/// The probability that a normal variate exceeds this. Abramowitz and Stegun, 26.2.17; off by
/// less than 7.5e-8.
fn upper_tail(deviate: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * deviate);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
    (-deviate * deviate / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// What is known of how far a sum over sampled blocks can be off. Each summand is wy, where y
/// is 1 or the block's size, and w the inverse of its probability to be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Σ y, of what was drawn.
    pub drawn: f64,
    /// Σ (w − 1)y, an estimate of what was not.
    pub missed: f64,
    /// Σ w(w − 1)y², an estimate of the sum's variance.
    pub variance: f64,
    /// Σ ((w − 1)y)².
    pub missed_squares: f64,
}

impl Spread {
    /// One more block is in the sum.
    pub(super) fn add(&mut self, weight: f64, value: f64) {
        let missed = (weight - 1.0) * value;
        self.drawn += value;
        self.missed += missed;
        self.variance += missed * weight * value;
        self.missed_squares += missed * missed;
    }

    /// The sum is added to another.
    pub fn merge(&mut self, other: &Self) {
        self.drawn += other.drawn;
        self.missed += other.missed;
        self.variance += other.variance;
        self.missed_squares += other.missed_squares;
    }
}

/// Where the truth is. What is uncertain is taken for a sample of k blocks that are all alike,
/// drawn from n with probability p each; k, p and the block's summand are those with which
/// `missed`, `variance` and `missed_squares` are what was found. The bounds are the n for which
/// so few or so many draws would be as rare as is allowed. For a small p, where the number of
/// draws is a Poisson variate, these are Garwood's; they are right too where few were missed.
#[must_use]
pub fn interval(estimate: f64, spread: &Spread, deviations: f64) -> Interval {
    let Spread { drawn, missed, variance, missed_squares } = *spread;
    // Nothing was left to chance.
    if missed_squares <= 0.0 || estimate <= 0.0 {
        return Interval { low: estimate, high: estimate };
    }
    let sample_drawn = (missed * missed / missed_squares).clamp(1.0, MAX_DRAWN);
    let probability = (1.0 - missed_squares / variance).clamp(MIN_PROBABILITY, 1.0);
    let sample = Sample {
        drawn: sample_drawn,
        missed: (missed_squares / variance).min(1.0 - MIN_PROBABILITY),
        in_all: sample_drawn / probability,
    };
    let of_one = variance / missed * probability;
    let at = |all: f64| estimate + (all - sample.in_all) * of_one;
    Interval {
        // What was drawn is there.
        low: sample.least(deviations).map_or(0.0, at).max(drawn),
        high: at(sample.most(deviations)),
    }
}

/// Where a sum of sizes is of which nothing was drawn, by intervals of so many bytes. Blocks of sizes s are all missed with probability
/// exp(−Σs / T), whatever the sizes are; so the sum is above T ln(1/q) in as few cases as q. Of one figure.
#[must_use]
pub fn undrawn(interval_bytes: u64) -> Interval {
    Interval { low: 0.0, high: -(interval_bytes as f64) * ((1.0 - CONFIDENCE) / 2.0).ln() }
}

/// More draws leave no doubt that could be told.
const MAX_DRAWN: f64 = 1e12;
/// Less than that of a block of one byte at the longest interval.
const MIN_PROBABILITY: f64 = 1e-13;

/// Halvings of a range in which a bound is looked for.
const HALVINGS: usize = 60;

/// Blocks that are all alike.
struct Sample {
    /// How many were drawn.
    drawn: f64,
    /// With which probability one is not drawn.
    missed: f64,
    /// How many there are by the estimate.
    in_all: f64,
}

impl Sample {
    /// None if there may be no more than those that were drawn.
    fn least(&self, deviations: f64) -> Option<f64> {
        let too_few = |all: f64| self.deviate(self.drawn - 1.0, all) > deviations;
        too_few(self.drawn).then(|| border(self.drawn, self.in_all, too_few))
    }

    fn most(&self, deviations: f64) -> f64 {
        let possible = |all: f64| self.deviate(self.drawn, all) > -deviations;
        // If not even one was missed, there are those that were drawn.
        if !possible(self.drawn + 1.0) {
            return self.in_all;
        }
        let mut beyond = self.in_all + 1.0;
        while possible(beyond) && beyond.is_finite() {
            beyond *= 2.0;
        }
        border(self.drawn + 1.0, beyond, possible).max(self.in_all)
    }

    /// The normal deviate of the probability that at most `drawn` of `all` are drawn. Peizer
    /// and Pratt 1968, Journal of the American Statistical Association 63.
    fn deviate(&self, drawn: f64, all: f64) -> f64 {
        let (expected, expected_missed) = (all * (1.0 - self.missed), all * self.missed);
        let (below, above) = (drawn + 0.5, all - drawn - 0.5);
        let apart = drawn + 2.0 / 3.0 - (all + 1.0 / 3.0) * (1.0 - self.missed);
        let difference = (below - expected).abs();
        if difference < 1e-9 * all {
            return apart / (expected * self.missed).sqrt();
        }
        let deviance = below * (below / expected).ln() + above * (above / expected_missed).ln();
        apart / difference * (2.0 * deviance / (1.0 + 1.0 / (6.0 * all))).max(0.0).sqrt()
    }
}

/// Where between two numbers something ceases to hold that holds for the first.
fn border(mut holds: f64, mut fails: f64, test: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(holds, fails);
        if test(middle) {
            holds = middle;
        } else {
            fails = middle;
        }
    }
    fails
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many draws of blocks of size 1.
    fn spread_of(draws: u32, probability: f64) -> (f64, Spread) {
        let mut spread = Spread::default();
        for _ in 0..draws {
            spread.add(1.0 / probability, 1.0);
        }
        (f64::from(draws) / probability, spread)
    }

    /// The probability of at most `drawn` draws from `all`, exactly.
    fn at_most(drawn: u32, all: u32, probability: f64) -> f64 {
        // Of so many missed, beginning with none.
        let mut term = probability.powi(all as i32);
        let mut fewer_missed = 0.0;
        for missed in 0..all - drawn {
            fewer_missed += term;
            term *= f64::from(all - missed) / f64::from(missed + 1);
            term *= (1.0 - probability) / probability;
        }
        1.0 - fewer_missed
    }

    #[test]
    fn what_was_missed_altogether_is_bounded_by_the_interval() {
        let Interval { low, high } = undrawn(1000);
        // ln 40 = 3.689
        assert!(low.abs() < 1e-9 && (high - 3689.0).abs() < 5.0, "{high}");
        let missed = (-high / 1000.0).exp();
        assert!((missed - 0.025).abs() < 1e-4, "{missed}");
    }

    #[test]
    fn deviates_are_those_of_the_tables() {
        for (probability, expected) in
            [(0.025, 1.959_964), (0.005, 2.575_829), (0.001, 3.090_232), (1e-6, 4.753_424)]
        {
            let found = normal_deviate(probability);
            assert!((found - expected).abs() < 4.5e-4, "{probability}: {found}");
        }
        assert!((deviations_for(1) - 1.959_964).abs() < 4.5e-4);
        // 1 − 0.95^(1/20) = 0.002561…
        assert!((deviations_for(20) - 3.016_4).abs() < 1e-3, "{}", deviations_for(20));
        assert_eq!(deviations_for(0), deviations_for(1));
    }

    /// Garwood's table: bounds of a count at 95 %.
    #[test]
    fn rare_draws_have_garwoods_bounds() {
        for (count, low, high) in
            [(1, 0.025, 5.572), (5, 1.623, 11.668), (10, 4.795, 18.390), (100, 81.36, 121.63)]
        {
            let (estimate, spread) = spread_of(count, 1e-6);
            let found = interval(estimate, &spread, deviations_for(1));
            let (found_low, found_high) = (found.low * 1e-6, found.high * 1e-6);
            assert!((found_low - low).abs() < 0.02, "{count}: {found_low}");
            assert!((found_high - high).abs() < 0.02, "{count}: {found_high}");
        }
    }

    /// Beyond the bounds, what was found would be as rare as the confidence says.
    #[test]
    fn likely_draws_have_the_bounds_of_the_binomial() {
        for deviations in [deviations_for(1), deviations_for(20)] {
            let allowed = 0.5 * (1.0 - CONFIDENCE.powf(if deviations < 2.0 { 1.0 } else { 0.05 }));
            for (drawn, probability) in [(20, 0.3), (8, 0.6), (25, 0.9), (60, 0.98), (300, 0.995)] {
                let (estimate, spread) = spread_of(drawn, probability);
                let found = interval(estimate, &spread, deviations);
                let most = found.high.ceil() as u32 + 1;
                assert!(at_most(drawn, most, probability) < 1.1 * allowed, "{drawn} {found:?}");
                let fewer = found.high as u32 - 1;
                assert!(at_most(drawn, fewer, probability) > 0.9 * allowed, "{drawn} {found:?}");
                let least = (found.low + 1e-6).floor() as u32;
                assert!(least >= drawn, "{found:?}");
                let as_many = |all| 1.0 - at_most(drawn - 1, all, probability);
                assert!(least == drawn || as_many(least - 1) < 1.1 * allowed, "{drawn} {found:?}");
                assert!(as_many(found.low.ceil() as u32 + 1) > 0.9 * allowed, "{drawn} {found:?}");
            }
        }
    }

    #[test]
    fn bounds_scale_with_the_estimate() {
        let (estimate, spread) = spread_of(10, 0.2);
        let one = interval(estimate, &spread, 2.0);
        let larger = Spread {
            drawn: spread.drawn * 1e3,
            missed: spread.missed * 1e3,
            variance: spread.variance * 1e6,
            missed_squares: spread.missed_squares * 1e6,
        };
        let thousand = interval(estimate * 1000.0, &larger, 2.0);
        assert!((thousand.low / one.low - 1000.0).abs() < 1e-6);
        assert!((thousand.high / one.high - 1000.0).abs() < 1e-6);
    }

    /// Tables of t, two-sided 95 % and 99.9 %.
    #[test]
    fn students_deviates_are_those_of_the_tables() {
        for (normal, degrees, expected, off) in [
            (1.959_964, 1.0, 12.706, 0.001),
            (1.959_964, 2.0, 4.303, 0.06),
            (1.959_964, 4.0, 2.776, 0.002),
            (1.959_964, 10.0, 2.228, 0.001),
            (1.959_964, 100.0, 1.984, 0.001),
            (3.290_527, 5.0, 6.869, 0.15),
            (3.290_527, 20.0, 3.850, 0.001),
        ] {
            let found = student_deviate(normal, degrees);
            assert!((found - expected).abs() < off, "{normal} {degrees}: {found}");
        }
    }

    #[test]
    fn what_is_certain_has_no_width() {
        let certain = Spread { drawn: 7.0, ..Spread::default() };
        assert_eq!(interval(7.0, &certain, 2.0), Interval { low: 7.0, high: 7.0 });
        assert_eq!(interval(0.0, &Spread::default(), 2.0), Interval { low: 0.0, high: 0.0 });
        // A large block that is certain does not hide what the small ones leave open.
        let (small, mut with_large) = spread_of(10, 0.2);
        let alone = interval(small, &with_large, 2.0);
        with_large.add(1.0, 1e6);
        let both = interval(small + 1e6, &with_large, 2.0);
        assert!((both.low - 1e6 - alone.low).abs() < 1e-3, "{both:?} {alone:?}");
        assert!((both.high - 1e6 - alone.high).abs() < 1e-3, "{both:?} {alone:?}");
        // One in a million such blocks is missed.
        let (estimate, spread) = spread_of(10, 1.0 - 1e-6);
        let found = interval(estimate, &spread, deviations_for(20));
        assert!(found.high - found.low < 1e-4, "{found:?}");
    }

    #[test]
    fn any_numbers_have_finite_bounds() {
        let numbers = [0.0_f64, 1e-9, 1.0, 1e9, 1e30];
        for estimate in numbers {
            for missed in numbers {
                for variance in numbers {
                    let missed_squares = missed.min(variance);
                    let spread = Spread { drawn: 0.0, missed, variance, missed_squares };
                    let found = interval(estimate, &spread, 3.0);
                    assert!(found.low.is_finite(), "{estimate} {spread:?}: {found:?}");
                    assert!(!found.high.is_nan(), "{estimate} {spread:?}: {found:?}");
                }
            }
        }
    }
}
