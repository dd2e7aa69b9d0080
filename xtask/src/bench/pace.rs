//! The pace of the machine. A virtual one shares its processors with others: while these work it is slower by up to a half, for
//! seconds at a time, which is more than many of the differences that are to be measured.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memscope_tests::resources::on_processor;

/// So much longer than its quickest the fixed computation may take.
const MOST: f64 = 1.25;
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
/// Of the fixed computation: some four milliseconds.
const STEPS: u32 = 200_000;
const LANES: usize = 4;
const TABLE_WORDS: usize = 4096;

/// How quick the machine has been at its best since the benchmark began.
pub(super) struct Pace {
    processors: usize,
    quickest_ns: AtomicU64,
}

impl Pace {
    pub(super) fn new() -> Result<Self> {
        let processors = thread::available_parallelism().context("no number of processors")?;
        Ok(Self { processors: processors.get(), quickest_ns: AtomicU64::new(u64::MAX) })
    }

    pub(super) fn processors(&self) -> usize {
        self.processors
    }

    /// How many times as long as at its best a fixed computation takes now, on the processor where it takes longest.
    pub(super) fn now(&self) -> Result<f64> {
        let (mut longest_ns, mut quickest_ns) = (0, u64::MAX);
        for processor in 0..self.processors {
            let taken = on_processor(processor, taken).context("cannot choose a processor")?;
            let taken_ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
            quickest_ns = self.quickest_ns.fetch_min(taken_ns, Ordering::Relaxed).min(taken_ns);
            longest_ns = longest_ns.max(taken_ns);
        }
        Ok(longest_ns as f64 / quickest_ns as f64)
    }

    /// Waits until it is nearly that, but not for ever.
    pub(super) fn wait(&self) -> Result<()> {
        let begun = Instant::now();
        while self.now()? > MOST && begun.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether that is the pace now.
    pub(super) fn is_quick(&self) -> Result<bool> {
        Ok(self.now()? <= MOST)
    }
}

/// How long the fixed computation takes. It keeps a processor as busy as programs do: one thing that waits for another all
/// the time would hardly notice who else uses the processor.
fn taken() -> Duration {
    let mut table = [7_u32; TABLE_WORDS];
    let mut lanes: [u32; LANES] = [1, 2, 3, 4];
    let begun = Instant::now();
    for step in 0..STEPS {
        for lane in &mut lanes {
            let word = &mut table[(*lane >> 7) as usize % TABLE_WORDS];
            *lane = lane.wrapping_mul(0x9e37_79b1).rotate_left(5) ^ *word;
            if *lane & 8 == 0 {
                *word = word.wrapping_add(step);
            }
        }
    }
    black_box((table, lanes));
    begun.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_pace_is_one_and_no_other_is_below_it() {
        let pace = Pace::new().unwrap();
        let paces: Vec<f64> = (0..5).map(|_| pace.now().unwrap()).collect();
        assert!(paces.iter().all(|pace| *pace >= 1.0), "{paces:?}");
        pace.quickest_ns.store(1, Ordering::Relaxed);
        assert!(!pace.is_quick().unwrap());
    }
}
