//! What a recording says that was observed in windows of time only, to keep a budget.
//!
//! Numbers of what began and ended are scaled by work: what was seen, times the work of the
//! targets in all, divided by their work while they were observed (a ratio estimate; Cochran,
//! Sampling Techniques, 1977, chapter 6). How far that can be off is told by how much the
//! windows differ from each other, and by how well their work is known.
//!
//! Work is processor time without what probes have cost of it; see [`Ledger`].
//!
//! Nothing is scaled that is live: a block is followed to the end of its window and no further,
//! so those that live are at least those seen to.

use super::{
    block::Totals,
    estimate::{Interval, Spread, interval, student_deviate},
};
use crate::model::Window;

/// Most windows kept one by one; further ones are only summed.
const MAX_WINDOWS: usize = 4096;

/// How far off the cost of a hit can be that was measured on code made for it.
const HIT_COST_ERROR: f64 = 0.2;
/// How much more than measured a program's own code can be slower behind a hit, because its
/// caches and predictions are disturbed: in Python's interpreter it was 180 ns.
const AFTERMATH_ERROR_NS: f64 = 200.0;
/// From so many samples on, work is told by them alone.
const ENOUGH_SAMPLES: f64 = 1000.0;
/// At least this share of the processor time in windows is work.
const LEAST_WORK: f64 = 0.002;

/// What the targets used while they were observed and while not, and what probes cost of it.
///
/// What they used while they were observed is work and probes. What share is spent in the
/// programs' own code and in the kernel on their behalf is told by samples, once there are enough;
/// until then it is mixed with what follows from the counted hits and what one was measured to
/// cost. From it goes what code is slower behind hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Processor time while they were observed.
    pub observed_cpu_ns: u64,
    /// Processor time while they were not, which is all work.
    pub missed_cpu_ns: u64,
    /// What of the first was spent in probes by their hits, times what one was measured to cost,
    /// and the time that the programs ran.
    pub probe_cost_ns: u64,
    /// How many hits.
    pub hits: u64,
    /// By how much the targets' own code was slower behind them, by the measured mean.
    pub aftermath_ns: u64,
    /// Samples of the first: at work.
    pub work_samples: u64,
    /// Samples of the first: in probes.
    pub probe_samples: u64,
}

/// What work can have been.
#[derive(Clone, Copy, Debug, PartialEq)]
struct WorkBounds {
    low_ns: f64,
    high_ns: f64,
}

impl Ledger {
    /// Which share of the time while they were observed was not spent in probes.
    fn share_outside(&self) -> f64 {
        let (work, all) = (self.work_samples as f64, self.samples());
        let sampled = if all > 0.0 { work / all } else { 0.0 };
        let (observed, cost) = (self.observed_cpu_ns as f64, self.probe_cost_ns as f64);
        let counted = if observed > 0.0 { 1.0 - cost / observed } else { 1.0 };
        let trust = self.trust();
        (trust * sampled + (1.0 - trust) * counted).clamp(LEAST_WORK, 1.0)
    }

    fn samples(&self) -> f64 {
        self.work_samples as f64 + self.probe_samples as f64
    }

    /// How far samples are trusted.
    fn trust(&self) -> f64 {
        (self.samples() / ENOUGH_SAMPLES).min(1.0)
    }

    /// Work while the targets were observed.
    #[must_use]
    pub fn observed_work_ns(&self) -> f64 {
        let observed_ns = self.observed_cpu_ns as f64;
        (self.share_outside() * observed_ns - self.aftermath_ns as f64)
            .max(LEAST_WORK * observed_ns)
    }

    /// How far that can be off: a number of samples, or what hits cost, and what is behind them.
    fn observed_work_within(&self, deviations: f64) -> WorkBounds {
        let (observed_ns, share) = (self.observed_cpu_ns as f64, self.share_outside());
        let trust = self.trust();
        let of_samples = (share * (1.0 - share) / self.samples().max(1.0)).sqrt() * deviations;
        let of_hits = HIT_COST_ERROR * (1.0 - share);
        let error_ns = observed_ns * (trust * of_samples).hypot((1.0 - trust) * of_hits);
        let work_ns = self.observed_work_ns();
        let behind_ns = AFTERMATH_ERROR_NS * self.hits as f64;
        WorkBounds { low_ns: work_ns - error_ns - behind_ns, high_ns: work_ns + error_ns }
    }

    /// What probes have cost: all that was not work.
    #[must_use]
    pub fn cost_ns(&self) -> f64 {
        self.observed_cpu_ns as f64 - self.observed_work_ns()
    }

    /// Work in all.
    #[must_use]
    pub fn work_ns(&self) -> f64 {
        self.observed_work_ns() + self.missed_cpu_ns as f64
    }

    fn add(&mut self, window: &Window) {
        for (sum, part) in [
            (&mut self.observed_cpu_ns, window.observed_cpu_ns),
            (&mut self.missed_cpu_ns, window.missed_cpu_ns),
            (&mut self.probe_cost_ns, window.probe_cost_ns),
            (&mut self.hits, window.hits),
            (&mut self.aftermath_ns, window.aftermath_ns),
            (&mut self.work_samples, window.work_samples),
            (&mut self.probe_samples, window.probe_samples),
        ] {
            *sum = sum.saturating_add(part);
        }
    }
}

/// Sums over windows of products of what began in one, y, and the time that the targets used in
/// it, x. The same share of it is taken to be work in each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Products {
    /// Σ y².
    squares: f64,
    /// Σ xy.
    by_time: f64,
}

impl Products {
    fn add(&mut self, time: f64, begun: f64) {
        self.squares += begun * begun;
        self.by_time += time * begun;
    }
}

/// What began at a site, or at all, window by window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Begun {
    blocks: Products,
    bytes: Products,
    /// What had begun until the window before.
    blocks_before: u64,
    bytes_before: u64,
}

impl Begun {
    /// A window ends, when so much has begun at a site in all. Where nothing has, the products
    /// are 0, and nothing is kept.
    pub(super) fn note(begun: &mut Option<Box<Self>>, window: &Window, blocks: u64, bytes: u64) {
        let before = begun.as_ref();
        let before = before.map_or((0, 0), |begun| (begun.blocks_before, begun.bytes_before));
        if let Some(time) = time_of(window).filter(|_| (blocks, bytes) != before) {
            begun.get_or_insert_default().end_window(time, blocks, bytes);
        }
    }

    /// A window of so much time ends, when so much has begun in all.
    fn end_window(&mut self, time: f64, blocks: u64, bytes: u64) {
        self.blocks.add(time, blocks.wrapping_sub(self.blocks_before) as f64);
        self.bytes.add(time, bytes.wrapping_sub(self.bytes_before) as f64);
        (self.blocks_before, self.bytes_before) = (blocks, bytes);
    }

    /// What is known of two sites, taken as one. The windows in which both had blocks are not
    /// known any more: the sum is taken to vary as if both always went together.
    pub(super) fn merge(&mut self, other: &Self) {
        for (sum, other) in [(&mut self.blocks, other.blocks), (&mut self.bytes, other.bytes)] {
            sum.squares += other.squares + 2.0 * (sum.squares * other.squares).sqrt();
            sum.by_time += other.by_time;
        }
        self.blocks_before = self.blocks_before.wrapping_add(other.blocks_before);
        self.bytes_before = self.bytes_before.wrapping_add(other.bytes_before);
    }
}

/// All windows of a recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Windows {
    /// At most the first few thousand.
    pub list: Vec<Window>,
    /// How many there were in which the targets did something.
    pub count: u64,
    /// Their sums.
    pub ledger: Ledger,
    /// Processor time of the collector.
    pub collector_cpu_ns: u64,
    /// What was to be spent at most, of the work, in millionths; 0 if there was no limit.
    pub budget_ppm: u32,
    /// Σ x² over windows, x being the time that the targets used in one.
    time_squares: f64,
    begun: Begun,
}

/// What targets used in a window, in ns. None if there was none at work.
fn time_of(window: &Window) -> Option<f64> {
    (window.observed_cpu_ns > 0).then_some(window.observed_cpu_ns as f64)
}

impl Windows {
    pub(super) fn add(&mut self, window: &Window, totals: &Totals) {
        if self.list.len() < MAX_WINDOWS {
            self.list.push(*window);
        }
        self.ledger.add(window);
        self.collector_cpu_ns = self.collector_cpu_ns.saturating_add(window.collector_cpu_ns);
        self.budget_ppm = window.budget_ppm;
        if let Some(time) = time_of(window) {
            self.count += 1;
            self.time_squares += time * time;
            self.begun.end_window(time, totals.allocations, totals.allocated_bytes);
        }
    }

    /// Whether the targets did anything unobserved.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        self.ledger.missed_cpu_ns > 0
    }

    /// What one that was seen to begin or to end stands for.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let observed_ns = self.ledger.observed_work_ns();
        if observed_ns > 0.0 { self.ledger.work_ns() / observed_ns } else { 1.0 }
    }

    /// What memscope took, of what the targets did by themselves.
    #[must_use]
    pub fn overhead(&self) -> Option<f64> {
        let work_ns = self.ledger.work_ns();
        let spent_ns = self.ledger.cost_ns() + self.collector_cpu_ns as f64;
        (work_ns > 0.0).then(|| spent_ns / work_ns)
    }

    /// Bounds of how many blocks began at a site, given the scaled number and what sampling
    /// leaves open of the number before.
    #[must_use]
    pub fn blocks_within(
        &self,
        site: Option<&Begun>,
        scaled: u64,
        spread: &Spread,
        deviations: f64,
    ) -> Interval {
        let begun = site.unwrap_or(&self.begun);
        self.within(&begun.blocks, scaled as f64, spread, deviations)
    }

    /// The same of their bytes.
    #[must_use]
    pub fn bytes_within(
        &self,
        site: Option<&Begun>,
        scaled: u64,
        spread: &Spread,
        deviations: f64,
    ) -> Interval {
        let begun = site.unwrap_or(&self.begun);
        self.within(&begun.bytes, scaled as f64, spread, deviations)
    }

    /// The variance of a ratio estimate (Cochran 1977, 6.4), of which there is less the more
    /// was observed, and that of sampling where it was observed. With n windows the deviate is
    /// Student's with n − 1 degrees of freedom. And then the work in the windows can have been
    /// more or less than it is taken for.
    fn within(
        &self,
        products: &Products,
        scaled: f64,
        spread: &Spread,
        deviations: f64,
    ) -> Interval {
        let (observed_ns, scale) = (self.ledger.observed_cpu_ns as f64, self.scale());
        let seen = scaled / scale;
        let sure = interval(seen, spread, deviations).low.max(0.0);
        if self.count < 2 || observed_ns <= 0.0 {
            return Interval { low: sure, high: f64::INFINITY };
        }
        let rate = seen / observed_ns;
        let residual =
            products.squares - 2.0 * rate * products.by_time + rate * rate * self.time_squares;
        let windows = self.count as f64;
        let share = 1.0 / scale;
        let between = (1.0 - share) * windows / (windows - 1.0) * scale * scale * residual.max(0.0);
        let within = share * scale * scale * spread.variance;
        let deviation = (between + within).sqrt() * student_deviate(deviations, windows - 1.0);
        let missed_ns = self.ledger.missed_cpu_ns as f64;
        let rescaled = |work_ns: f64| (1.0 + missed_ns / work_ns) / scale;
        let work = self.ledger.observed_work_within(deviations);
        Interval {
            low: ((scaled - deviation) * rescaled(work.high_ns)).max(sure),
            high: if work.low_ns > 0.0 {
                (scaled + deviation) * rescaled(work.low_ns)
            } else {
                f64::INFINITY
            },
        }
    }
}
