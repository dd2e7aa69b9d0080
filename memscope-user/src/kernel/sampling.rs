//! What blocks are drawn by, and what is counted of all others.

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use memscope_common::control::{ExactCounters, GAP_STEPS, Gaps, SIZE_CLASSES, Sampling};

use super::{Kernel, KernelError, plain::Plain, take_map};
use crate::model::{ExactCounts, SizeClass};

/// Makes the quantiles that [`Gaps`] speaks of: `-ln(1 - i / GAP_STEPS)` in units of 2^-16.
fn gaps() -> Gaps {
    const UNIT: f64 = 65_536.0;
    let steps = GAP_STEPS as f64;
    let mut gaps = Gaps { quantiles: [0; GAP_STEPS + 1], padding: 0 };
    for (step, quantile) in gaps.quantiles.iter_mut().enumerate() {
        let below = step as f64 / steps;
        let value = if step < GAP_STEPS {
            -(1.0 - below).ln()
        } else {
            // What exceeds `ln(steps)` does so by 1 in the mean, as there is no memory; the
            // values up to this one are drawn evenly.
            steps.ln() + 2.0
        };
        *quantile = (value * UNIT).round() as u32;
    }
    gaps
}

/// The maps that drawing is controlled by.
pub(super) struct SamplingMaps {
    sampling: Array<MapData, Plain<Sampling>>,
    exact: PerCpuArray<MapData, Plain<ExactCounters>>,
    drawn: HashMap<MapData, u64, u32>,
    current: Sampling,
}

/// From so many blocks on, those that were drawn in former windows are forgotten: a quarter of
/// what there is room for.
const MANY_FORGOTTEN_BLOCKS: u64 = 1 << 18;

impl SamplingMaps {
    pub(super) fn new(ebpf: &mut aya::Ebpf, interval_bytes: u64) -> Result<Self, KernelError> {
        let mut table: Array<MapData, Plain<Gaps>> = take_map(ebpf, "GAPS")?;
        table
            .set(0, Plain(gaps()), 0)
            .map_err(|source| KernelError::Map { map: "GAPS", source })?;
        let mut maps = Self {
            sampling: take_map(ebpf, "SAMPLING")?,
            exact: take_map(ebpf, "EXACT")?,
            drawn: take_map(ebpf, "SAMPLED")?,
            current: Sampling::default(),
        };
        maps.set_interval(interval_bytes)?;
        Ok(maps)
    }

    fn set_interval(&mut self, interval_bytes: u64) -> Result<(), KernelError> {
        self.current.interval_bytes = interval_bytes.max(1);
        self.current.generation += 1;
        self.publish()
    }

    fn publish(&mut self) -> Result<(), KernelError> {
        self.sampling
            .set(0, Plain(self.current), 0)
            .map_err(|source| KernelError::Map { map: "SAMPLING", source })
    }

    /// Blocks that were drawn until now are not known any more. `drawn` is how many there can
    /// be that were not forgotten yet; whether they are now.
    fn begin_window(&mut self, drawn: u64) -> Result<bool, KernelError> {
        self.current.window = self.current.window.wrapping_add(1);
        self.publish()?;
        if drawn < MANY_FORGOTTEN_BLOCKS {
            return Ok(false);
        }
        let source = |source| KernelError::Map { map: "SAMPLED", source };
        let keys: Vec<u64> = self.drawn.keys().filter_map(Result::ok).collect();
        for key in keys {
            match self.drawn.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(source(error)),
            }
        }
        Ok(true)
    }

    fn exact_counts(&self) -> Result<ExactCounts, KernelError> {
        let source = |source| KernelError::Map { map: "EXACT", source };
        let cpus = self.exact.get(&0, 0).map_err(source)?;
        let sum = |value: &dyn Fn(&ExactCounters) -> Option<u64>| -> u64 {
            cpus.iter().filter_map(|cpu| value(&cpu.0)).fold(0, u64::wrapping_add)
        };
        let classes: Vec<SizeClass> = (0..SIZE_CLASSES)
            .map(|class| SizeClass {
                bits: class as u8,
                calls: sum(&|cpu| cpu.calls.get(class).copied()),
                bytes: sum(&|cpu| cpu.bytes.get(class).copied()),
            })
            .filter(|class| class.calls > 0)
            .collect();
        Ok(ExactCounts { classes, frees_dropped: sum(&|cpu| Some(cpu.frees_dropped)) })
    }
}

impl Kernel {
    /// What was counted of all calls while blocks are sampled; none if all are recorded.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn exact_counts(&self) -> Result<Option<ExactCounts>, KernelError> {
        self.sampling.as_ref().map(SamplingMaps::exact_counts).transpose()
    }

    /// Draws blocks at another mean distance from now on, if they are drawn at all.
    ///
    /// # Errors
    ///
    /// If the map refuses.
    pub fn set_sampling_interval(&mut self, interval_bytes: u64) -> Result<(), KernelError> {
        self.sampling.as_mut().map_or(Ok(()), |maps| maps.set_interval(interval_bytes))
    }

    pub(super) fn begin_window_of_samples(&mut self, drawn: u64) -> Result<bool, KernelError> {
        self.sampling.as_mut().map_or(Ok(false), |maps| maps.begin_window(drawn))
    }
}

#[cfg(test)]
mod tests {
    use memscope_ebpf::{gap_bytes, next_random, random_seed};

    use super::*;

    #[test]
    fn gaps_are_exponentially_distributed() {
        const DRAWS: usize = 1_000_000;
        let gaps = gaps();
        for interval_bytes in [1_000, 524_288, 1 << 40] {
            let mut random = next_random(7);
            let mut sum = 0.0;
            let mut beyond = [0_u32; 3];
            for _ in 0..DRAWS {
                random = next_random(random);
                let gap = gap_bytes(&gaps, random, interval_bytes) as f64 / interval_bytes as f64;
                sum += gap;
                for (times, count) in [0.5, 1.0, 3.0].into_iter().zip(&mut beyond) {
                    *count += u32::from(gap > times);
                }
            }
            let mean = sum / DRAWS as f64;
            assert!((mean - 1.0).abs() < 0.005, "mean {mean} of {interval_bytes}");
            for (times, count) in [0.5_f64, 1.0, 3.0].into_iter().zip(beyond) {
                let (share, expected) = (f64::from(count) / DRAWS as f64, (-times).exp());
                assert!((share - expected).abs() < 0.003, "{share} beyond {times}, not {expected}");
            }
        }
    }

    /// Of threads that end after their first few blocks, only first distances are drawn.
    #[test]
    fn the_first_distances_of_threads_are_distributed_as_all() {
        const THREADS: u64 = 200_000;
        let gaps = gaps();
        let gap = |random| gap_bytes(&gaps, random, 1 << 20) as f64 / f64::from(1 << 20);
        for seed in [0, 1, 7, u32::MAX] {
            let (mut sum, mut products, mut within) = ([0.0; 2], [0.0; 2], [0_u32; 3]);
            let mut before = 1.0;
            for thread in 0..THREADS {
                let random = next_random(random_seed(seed, thread));
                let (first, second) = (gap(random), gap(next_random(random)));
                sum[0] += first;
                sum[1] += second;
                products[0] += (first - 1.0) * (second - 1.0);
                products[1] += (first - 1.0) * (before - 1.0);
                before = first;
                for (times, count) in [0.01, 0.5, 3.0].into_iter().zip(&mut within) {
                    *count += u32::from(first <= times);
                }
            }
            let share = |sum: f64| sum / THREADS as f64;
            assert!(sum.iter().all(|sum| (share(*sum) - 1.0).abs() < 0.01), "{seed}: {sum:?}");
            // Neither within a thread nor from one to the next.
            assert!(products.iter().all(|sum| share(*sum).abs() < 0.02), "{seed}: {products:?}");
            for (times, count) in [0.01_f64, 0.5, 3.0].into_iter().zip(within) {
                let expected = 1.0 - (-times).exp();
                let found = share(count.into());
                assert!((found - expected).abs() < 0.004, "{seed}: {found} within {times}");
            }
        }
    }

    /// As the programs do it: what is left of a distance is taken over to the next block.
    #[test]
    fn blocks_are_drawn_with_the_probability_that_estimates_assume() {
        const INTERVAL_BYTES: u64 = 4096;
        let gaps = gaps();
        let sizes = [16_u64, 100, 1000, 5000, 20_000];
        let (mut drawn, mut random) = ([0_u32; 5], 1);
        let mut draw = || {
            random = next_random(random);
            gap_bytes(&gaps, random, INTERVAL_BYTES)
        };
        let mut until = draw();
        for _ in 0..200_000 {
            for (size, drawn) in sizes.iter().zip(&mut drawn) {
                if until <= *size {
                    *drawn += 1;
                    until = draw();
                } else {
                    until -= size;
                }
            }
        }
        for (size, drawn) in sizes.into_iter().zip(drawn) {
            let share = f64::from(drawn) / 200_000.0;
            let expected = 1.0 - (-(size as f64) / INTERVAL_BYTES as f64).exp();
            let deviation = (expected * (1.0 - expected) / 200_000.0).sqrt();
            assert!(
                (share - expected).abs() < 4.0 * deviation + 0.001,
                "{size}: {share}, not {expected}"
            );
        }
    }
}
