//! What sampled blocks stand for. A block of size s, drawn while the mean distance between
//! two draws was T bytes, was drawn with probability p = 1 − exp(−max(s, 1) / T). So it
//! counts for 1/p blocks and s/p bytes, which is right on average (Horvitz and Thompson 1952).

use super::{block::Weight, estimate::Spread};

/// Longer intervals count as this one: only a forged recording has them.
const MAX_INTERVAL_BYTES: u64 = 1 << 40;

/// For how many blocks a sampled one counts, exactly.
pub(super) fn weight_of(size_bytes: u64, interval_bytes: u64) -> f64 {
    if interval_bytes == 0 {
        return 1.0;
    }
    let interval_bytes = interval_bytes.min(MAX_INTERVAL_BYTES) as f64;
    let drawn = -(-(size_bytes.max(1) as f64) / interval_bytes).exp_m1();
    1.0 / drawn
}

/// How far a number of blocks, and that of their bytes, can be off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spreads {
    /// Of a number of blocks.
    pub blocks: Spread,
    /// Of a number of bytes.
    pub bytes: Spread,
}

impl Spreads {
    fn add(&mut self, size_bytes: u64, weight: f64) {
        self.blocks.add(weight, 1.0);
        self.bytes.add(weight, size_bytes as f64);
    }

    fn merge(&mut self, other: &Self) {
        self.blocks.merge(&other.blocks);
        self.bytes.merge(&other.bytes);
    }
}

/// What the sampled blocks of a site, or of all, tell of the site's estimates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Sampled blocks that began.
    pub blocks: u64,
    /// Those of them that were freed.
    pub freed_blocks: u64,
    /// Those of them that are live.
    pub live_blocks: u64,
    /// Of what was allocated.
    pub allocated: Spreads,
    /// Of what is live.
    pub live: Spreads,
    /// What of 1/p and s/p is not yet in whole blocks and bytes.
    carry_blocks: f64,
    carry_bytes: f64,
}

impl Sampled {
    /// A sampled block begins: gives what it counts for, in whole numbers. What is left over
    /// is carried to the next one, so sums are off by less than one.
    pub(super) fn draw(&mut self, size_bytes: u64, interval_bytes: u64) -> Weight {
        let weight = weight_of(size_bytes, interval_bytes);
        self.blocks += 1;
        self.allocated.add(size_bytes, weight);
        let whole = |carry: &mut f64, exact: f64| {
            let sum = *carry + exact;
            *carry = sum.fract();
            sum as u64
        };
        Weight {
            blocks: whole(&mut self.carry_blocks, weight),
            bytes: whole(&mut self.carry_bytes, size_bytes as f64 * weight),
        }
    }

    /// One of the blocks is live.
    pub(super) fn add_live(&mut self, size_bytes: u64, interval_bytes: u64) {
        self.live_blocks += 1;
        self.live.add(size_bytes, weight_of(size_bytes, interval_bytes));
    }

    /// Adds what is known of others.
    pub fn merge(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.freed_blocks += other.freed_blocks;
        self.live_blocks += other.live_blocks;
        self.allocated.merge(&other.allocated);
        self.live.merge(&other.live);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_reverse_of_the_probability() {
        assert_eq!(weight_of(100, 0), 1.0);
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-9;
        // Much smaller than the interval: T/s, and half a block for those drawn twice.
        assert!(close(weight_of(1, 1_000_000), 1_000_000.5 + 1.0 / 12e6));
        assert!(close(weight_of(0, 1_000_000), weight_of(1, 1_000_000)));
        // As large as the interval.
        assert!(close(weight_of(4096, 4096), 1.0 / (1.0 - (-1.0_f64).exp())));
        // Much larger: always drawn.
        assert_eq!(weight_of(u64::MAX, 4096), 1.0);
        assert!(weight_of(0, u64::MAX).is_finite());
    }

    #[test]
    fn whole_weights_add_up_to_the_exact_ones() {
        let mut sampled = Sampled::default();
        let (mut whole, mut exact) = ((0, 0), (0.0, 0.0));
        for number in 0..10_000_u64 {
            let size_bytes = number * number % 3000;
            let weight = sampled.draw(size_bytes, 1000);
            assert!(weight.blocks >= 1);
            let weight_exact = weight_of(size_bytes, 1000);
            whole = (whole.0 + weight.blocks, whole.1 + weight.bytes);
            exact = (exact.0 + weight_exact, exact.1 + weight_exact * size_bytes as f64);
            assert!((whole.0 as f64 - exact.0).abs() < 1.001, "{whole:?} {exact:?}");
            assert!((whole.1 as f64 - exact.1).abs() < 1.001, "{whole:?} {exact:?}");
        }
        assert_eq!(sampled.blocks, 10_000);
    }
}
