/// Buckets per doubling.
const SUB_BUCKETS: u64 = 16;
/// The first 16 values have a bucket each, then 16 buckets per doubling up to 2^64.
const MAX_BUCKETS: usize = 16 + 60 * 16;

/// Distribution of lifetimes, in buckets of which each is at most 1/16 wide of its
/// lower bound, so that a quantile is at most 1/32 off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Bucket of `counts[0]`.
    first_bucket: usize,
    /// Small, as there are many sites and what is in the processor's cache is little.
    counts: Vec<u32>,
    /// What of the counts is beyond 32 bits, by bucket.
    beyond: Vec<(usize, u64)>,
    total: u64,
    min_ns: u64,
    max_ns: u64,
}

/// Least, middle, greatest lifetime, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifetimeSummary {
    /// Shortest.
    pub min_ns: u64,
    /// Half of the blocks lived no longer.
    pub p50_ns: u64,
    /// Nine in ten lived no longer.
    pub p90_ns: u64,
    /// 99 in 100 lived no longer.
    pub p99_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BUCKETS.ilog2();
    // The leading bits, 16 to 31, say which of the 16 buckets of this doubling.
    (u64::from(shift) * SUB_BUCKETS + (value >> shift)) as usize
}

/// Middle of a bucket.
fn value_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUB_BUCKETS {
        return bucket;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    let lower = (bucket % SUB_BUCKETS + SUB_BUCKETS) << shift;
    lower + ((1 << shift) >> 1)
}

impl Lifetimes {
    /// Counts so many blocks.
    pub fn add(&mut self, lifetime_ns: u64, blocks: u64) {
        let bucket = bucket_of(lifetime_ns);
        debug_assert!(bucket < MAX_BUCKETS, "2^64 ends the last bucket");
        if self.counts.is_empty() {
            self.min_ns = u64::MAX;
        }
        self.count(bucket, blocks);
        // A forged recording can have more than a u64 holds.
        self.total = self.total.wrapping_add(blocks);
        self.min_ns = self.min_ns.min(lifetime_ns);
        self.max_ns = self.max_ns.max(lifetime_ns);
    }

    fn count(&mut self, bucket: usize, blocks: u64) {
        let position = bucket.wrapping_sub(self.first_bucket);
        let count = match self.counts.get_mut(position) {
            Some(count) => count,
            None => self.make_room(bucket),
        };
        let sum = u64::from(*count).wrapping_add(blocks);
        *count = sum as u32;
        if sum > u64::from(u32::MAX) {
            self.go_beyond(bucket, sum - u64::from(sum as u32));
        }
    }

    #[cold]
    fn go_beyond(&mut self, bucket: usize, blocks: u64) {
        match self.beyond.iter_mut().find(|(known, _)| *known == bucket) {
            Some((_, sum)) => *sum = sum.wrapping_add(blocks),
            None => self.beyond.push((bucket, blocks)),
        }
    }

    /// Counts of whole doublings, so that there are few occasions for this.
    #[cold]
    fn make_room(&mut self, bucket: usize) -> &mut u32 {
        let first = bucket - bucket % SUB_BUCKETS as usize;
        if self.counts.is_empty() {
            self.first_bucket = first;
        }
        if first < self.first_bucket {
            let missing = self.first_bucket - first;
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first_bucket = first;
        }
        let end = first + SUB_BUCKETS as usize - self.first_bucket;
        if end > self.counts.len() {
            self.counts.resize(end, 0);
        }
        &mut self.counts[bucket - self.first_bucket]
    }

    /// Buckets in order, with their counts.
    fn buckets(&self) -> impl Iterator<Item = (usize, u64)> {
        (self.first_bucket..).zip(&self.counts).map(|(bucket, count)| {
            let beyond = self.beyond.iter().find(|(known, _)| *known == bucket);
            (bucket, beyond.map_or(0, |(_, blocks)| *blocks).wrapping_add((*count).into()))
        })
    }

    /// Counts all blocks of another distribution too.
    pub fn merge(&mut self, other: &Self) {
        if other.counts.is_empty() {
            return;
        }
        if self.counts.is_empty() {
            *self = other.clone();
            return;
        }
        for (bucket, blocks) in other.buckets().filter(|(_, blocks)| *blocks > 0) {
            self.count(bucket, blocks);
        }
        self.total = self.total.wrapping_add(other.total);
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// The distribution in five numbers; none if no block ended.
    #[must_use]
    pub fn summary(&self) -> Option<LifetimeSummary> {
        (self.total > 0).then(|| LifetimeSummary {
            min_ns: self.min_ns,
            p50_ns: self.quantile_ns(50),
            p90_ns: self.quantile_ns(90),
            p99_ns: self.quantile_ns(99),
            max_ns: self.max_ns,
        })
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.counts.capacity() * size_of::<u32>()
            + self.beyond.capacity() * size_of::<(usize, u64)>()
    }

    fn quantile_ns(&self, percent: u64) -> u64 {
        // The rank of the block that `percent` of all live no longer than.
        let rank = (u128::from(self.total) * u128::from(percent)).div_ceil(100) as u64;
        let mut seen = 0_u64;
        for (bucket, count) in self.buckets() {
            seen = seen.saturating_add(count);
            if seen >= rank {
                return value_of(bucket).clamp(self.min_ns, self.max_ns);
            }
        }
        self.max_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_block_gives_no_summary() {
        assert_eq!(Lifetimes::default().summary(), None);
    }

    #[test]
    fn buckets_join_without_gap() {
        let values = (0..5000).chain((0..64).flat_map(|bit| {
            let power = 1_u64 << bit;
            [power - 1, power, power + 1]
        }));
        let mut values: Vec<u64> = values.chain([u64::MAX]).collect();
        values.sort_unstable();
        for pair in values.windows(2) {
            let (low, high) = (bucket_of(pair[0]), bucket_of(pair[1]));
            assert!(low <= high && high < MAX_BUCKETS, "{pair:?} in {low} and {high}");
            if pair[1] - pair[0] <= 1 {
                assert!(high - low <= 1, "{pair:?} in {low} and {high}");
            }
        }
    }

    #[test]
    fn counts_go_beyond_32_bits() {
        let large = u64::from(u32::MAX);
        let mut lifetimes = Lifetimes::default();
        lifetimes.add(5, large);
        lifetimes.add(5, large);
        lifetimes.add(1_000_000, 3 * large);
        let mut merged = lifetimes.clone();
        merged.merge(&lifetimes);
        for (one, times) in [(&lifetimes, 1), (&merged, 2)] {
            let counts: Vec<_> = one.buckets().filter(|(_, count)| *count > 0).collect();
            let expected = [(5, 2 * large * times), (bucket_of(1_000_000), 3 * large * times)];
            assert_eq!(counts, expected);
            assert!(one.summary().unwrap().p50_ns > 900_000);
        }
    }

    proptest! {
        #[test]
        fn two_merged_are_as_one(left: Vec<u64>, right: Vec<u64>) {
            let of = |values: &[u64]| {
                let mut lifetimes = Lifetimes::default();
                values.iter().for_each(|value| lifetimes.add(*value, 1));
                lifetimes
            };
            let mut merged = of(&left);
            merged.merge(&of(&right));
            let all = of(&[left, right].concat());
            prop_assert_eq!(merged.summary(), all.summary());
            prop_assert_eq!(merged.counts, all.counts);
        }

        #[test]
        fn quantiles_are_within_their_error(mut values in prop::collection::vec(any::<u64>(), 1..200), small in any::<bool>()) {
            if small {
                values.iter_mut().for_each(|value| *value %= 1_000_000);
            }
            let mut lifetimes = Lifetimes::default();
            values.iter().for_each(|value| lifetimes.add(*value, 1));
            values.sort_unstable();
            let summary = lifetimes.summary().unwrap();
            prop_assert_eq!(summary.min_ns, values[0]);
            prop_assert_eq!(summary.max_ns, values[values.len() - 1]);
            for (percent, estimate) in [(50, summary.p50_ns), (90, summary.p90_ns), (99, summary.p99_ns)] {
                let exact = values[(values.len() * percent).div_ceil(100) - 1];
                prop_assert!(estimate.abs_diff(exact) <= exact / 32 + 1, "p{percent}: {estimate} for {exact}");
            }
        }
    }
}
