//! A trace that may cost its targets so much and no more (`--max-overhead`): when they are
//! observed, and how many of their blocks are drawn.
//!
//! What may be spent is a share of the targets' work: of their processor time without what
//! probes have cost of it. What is spent is that cost, and memscope's own processor time while
//! it records. Of the two an account is kept. When it is overdrawn, fewer blocks are drawn, and if
//! that does not save enough, the probes are taken off until the account is even again.

use std::{hash::BuildHasher as _, time::Duration};

use rustc_hash::FxBuildHasher;

use crate::{kernel::ProbeCost, lifetimes::Ledger, model::Window};

/// How often it is looked at what is spent.
const TICK: Duration = Duration::from_millis(20);
/// Longest time without a look.
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// A window lasts a two-hundredth of the trace so far, but at least and at most so long: many
/// short ones tell more of the sums, long ones more of lifetimes.
const WINDOWS_PER_TRACE: u64 = 200;
const SHORTEST_WINDOW_NS: u64 = 20_000_000;
const LONGEST_WINDOW_NS: u64 = 500_000_000;
/// Work that is paid for in advance: else what memscope does as it starts would end the first
/// window of a target that can be observed all the time.
const FORESEEN_WORK_NS: f64 = 200_000_000.0;
/// A window is cut short when the account is overdrawn by this share of all that could be spent.
const FAR_OVER: f64 = 0.04;
/// A target that does next to nothing is looked at as often as this, even if that is too dear.
const LONGEST_GAP_NS: u64 = 10_000_000_000;
/// Mean bytes between two samples are raised and lowered by these factors, up to so many.
const RAISE_BY: u64 = 16;
const LOWER_BY: u64 = 4;
const LONGEST_INTERVAL_BYTES: u64 = 512 << 10;
/// Recording that costs less, compared with the hits of probes, is not worth drawing less for.
const NEGLIGIBLE_RECORDING: f64 = 0.75;
/// Below this share of the budget, more blocks are drawn again.
const PLENTY: f64 = 0.6;

/// What was used since the beginning of the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Used {
    pub(super) now_ns: u64,
    /// Processor time of the targets.
    pub(super) target_cpu_ns: u64,
    /// What of it was due to probes, as counted.
    pub(super) probes: ProbeCost,
    /// Processor time of memscope.
    pub(super) collector_cpu_ns: u64,
}

/// What is to be done now, and when to look again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    /// Blocks are to be drawn at this distance.
    Draw(u64),
    /// The probes are to be taken off; then [`Budget::closed`] is to be told.
    Close,
    /// They are to be attached; then [`Budget::opened`] is to be told.
    Open,
}

/// What is spent, and what may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overhead {
    /// Since this was last asked.
    pub(super) now: f64,
    /// At most, on average.
    pub(super) budget: f64,
    /// Share of the work that was observed.
    pub(super) observed: f64,
}

/// The account.
#[derive(Debug)]
pub(super) struct Budget {
    ppm: u32,
    seed: u32,
    shortest_interval_bytes: u64,
    interval_bytes: u64,
    is_open: bool,
    begun: Used,
    /// When the present window, or gap, began.
    changed: Used,
    /// When the last window ended.
    window_end: Used,
    /// When it was last looked whether more can be drawn.
    judged: Used,
    windows: u64,
    /// Until the present window, or gap, began.
    ledger: Ledger,
    /// What the last window has cost more than was earned in it.
    last_overdraft_ns: f64,
    told: Used,
}

impl Budget {
    /// Recording begins now, with the probes attached.
    pub(super) fn new(ppm: u32, interval_bytes: u64, seed: u32, begun: Used) -> Self {
        Self {
            ppm,
            seed,
            shortest_interval_bytes: interval_bytes,
            interval_bytes,
            is_open: true,
            begun,
            changed: begun,
            window_end: begun,
            judged: begun,
            windows: 0,
            ledger: Ledger::default(),
            last_overdraft_ns: 0.0,
            told: begun,
        }
    }

    fn share(&self) -> f64 {
        f64::from(self.ppm) / 1e6
    }

    /// All until now.
    fn ledger(&self, used: &Used) -> Ledger {
        let mut ledger = self.ledger;
        let since_ns = used.target_cpu_ns.saturating_sub(self.changed.target_cpu_ns);
        if self.is_open {
            ledger.observed_cpu_ns += since_ns;
        } else {
            ledger.missed_cpu_ns += since_ns;
        }
        let since = |value: fn(&ProbeCost) -> u64| {
            value(&used.probes).saturating_sub(value(&self.begun.probes))
        };
        ledger.probe_cost_ns = since(ProbeCost::kernel_ns);
        ledger.hits = since(|probes| probes.hits);
        ledger.aftermath_ns = since(|probes| probes.aftermath_ns);
        ledger.work_samples = since(|probes| probes.work_samples);
        ledger.probe_samples = since(|probes| probes.probe_samples);
        ledger
    }

    /// Between two moments: work, and what was spent. What hits cost in these targets is known
    /// from all until the second one.
    fn between(&self, from: &Used, until: &Used) -> (f64, f64) {
        let since = |value: fn(&Used) -> u64| value(until).saturating_sub(value(from)) as f64;
        let ledger = self.ledger(until);
        let factor = match ledger.probe_cost_ns {
            0 => 1.0,
            counted_ns => ledger.cost_ns() / counted_ns as f64,
        };
        let cpu_ns = since(|used| used.target_cpu_ns);
        let cost_ns = (factor * since(|used| used.probes.kernel_ns())).min(cpu_ns);
        (cpu_ns - cost_ns, cost_ns + since(|used| used.collector_cpu_ns))
    }

    /// What may still be spent, between two moments; negative if too much was.
    fn left_ns(&self, from: &Used, until: &Used) -> f64 {
        let (work_ns, spent_ns) = self.between(from, until);
        self.share() * work_ns - spent_ns
    }

    pub(super) fn interval_bytes(&self) -> u64 {
        self.interval_bytes
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// What to do, given what was used until now.
    pub(super) fn step(&mut self, used: &Used) -> Step {
        let left_ns = self.left_ns(&self.begun, used);
        let since_ns = used.now_ns.saturating_sub(self.changed.now_ns);
        if self.is_open {
            self.step_open(used, left_ns, since_ns)
        } else {
            self.step_closed(used, left_ns, since_ns)
        }
    }

    fn step_open(&mut self, used: &Used, left_ns: f64, since_ns: u64) -> Step {
        let trace_ns = used.now_ns.saturating_sub(self.begun.now_ns);
        let length_ns = (trace_ns / WINDOWS_PER_TRACE).clamp(SHORTEST_WINDOW_NS, LONGEST_WINDOW_NS);
        let work_ns = self.ledger(used).work_ns();
        let is_far_over = -left_ns > FAR_OVER * self.share() * work_ns;
        let is_long = since_ns >= if is_far_over { SHORTEST_WINDOW_NS } else { length_ns };
        if left_ns + self.share() * FORESEEN_WORK_NS < 0.0 && is_long {
            return Step { action: Action::Close, wait: TICK };
        }
        let judged_since_ns = used.now_ns.saturating_sub(self.judged.now_ns);
        if judged_since_ns < LONGEST_WINDOW_NS {
            return Step { action: Action::None, wait: TICK };
        }
        let (work_ns, spent_ns) = self.between(&self.judged, used);
        self.judged = *used;
        if spent_ns < PLENTY * self.share() * work_ns
            && self.interval_bytes > self.shortest_interval_bytes
        {
            let lower = (self.interval_bytes / LOWER_BY).max(self.shortest_interval_bytes);
            self.interval_bytes = lower;
            return Step { action: Action::Draw(lower), wait: TICK };
        }
        Step { action: Action::None, wait: TICK }
    }

    fn step_closed(&self, used: &Used, left_ns: f64, since_ns: u64) -> Step {
        // A little later than when the account is even, by chance: else what the target does
        // at regular times could always fall into a window, or never.
        let chance = FxBuildHasher.hash_one((self.seed, self.windows)) >> 11;
        let reserve_ns = self.last_overdraft_ns * (chance as f64 / (1_u64 << 53) as f64);
        if left_ns >= reserve_ns || since_ns >= LONGEST_GAP_NS {
            return Step { action: Action::Open, wait: TICK };
        }
        // As much work as in this gap so far will be done in as much time.
        let earned_ns = self.left_ns(&self.changed, used);
        let wait_ns = if earned_ns > 0.0 && since_ns > 0 {
            (reserve_ns - left_ns) / earned_ns * since_ns as f64
        } else {
            0.0
        };
        let wait = Duration::from_nanos(wait_ns.min(1e18) as u64);
        Step { action: Action::None, wait: wait.clamp(TICK, LONGEST_WAIT) }
    }

    /// The probes were taken off: what is to be recorded of the window. Draws less from now
    /// on, if that saves anything.
    pub(super) fn closed(&mut self, used: &Used) -> Window {
        let window = self.window(used, false);
        let probes = |value: fn(&ProbeCost) -> u64| {
            value(&used.probes).saturating_sub(value(&self.changed.probes)) as f64
        };
        let traps_ns = probes(|cost| cost.traps_ns);
        let collector_ns =
            used.collector_cpu_ns.saturating_sub(self.changed.collector_cpu_ns) as f64;
        let recording_ns = probes(|cost| cost.programs_ns) + collector_ns;
        if recording_ns > NEGLIGIBLE_RECORDING * traps_ns {
            self.interval_bytes = self
                .interval_bytes
                .saturating_mul(RAISE_BY)
                .min(LONGEST_INTERVAL_BYTES)
                .max(self.interval_bytes);
        }
        self.last_overdraft_ns = (-self.left_ns(&self.changed, used)).max(0.0);
        self.ledger = self.ledger(used);
        self.is_open = false;
        self.windows += 1;
        (self.changed, self.window_end) = (*used, *used);
        window
    }

    /// The probes were attached.
    pub(super) fn opened(&mut self, used: &Used) {
        self.ledger = self.ledger(used);
        self.is_open = true;
        (self.changed, self.judged) = (*used, *used);
    }

    /// The trace ends: what is to be recorded last.
    pub(super) fn finish(self, used: &Used) -> Window {
        self.window(used, self.is_open)
    }

    fn window(&self, used: &Used, is_last: bool) -> Window {
        let begin = if self.is_open { &self.changed } else { used };
        let since = |value: fn(&Used) -> u64| value(used).saturating_sub(value(&self.window_end));
        let (before_ns, until_ns) = (self.window_end.target_cpu_ns, used.target_cpu_ns);
        Window {
            begin_ns: begin.now_ns,
            end_ns: used.now_ns,
            observed_cpu_ns: until_ns.saturating_sub(begin.target_cpu_ns),
            missed_cpu_ns: begin.target_cpu_ns.saturating_sub(before_ns),
            probe_cost_ns: since(|used| used.probes.kernel_ns()),
            hits: since(|used| used.probes.hits),
            aftermath_ns: since(|used| used.probes.aftermath_ns),
            work_samples: since(|used| used.probes.work_samples),
            probe_samples: since(|used| used.probes.probe_samples),
            collector_cpu_ns: since(|used| used.collector_cpu_ns),
            interval_bytes: self.interval_bytes,
            budget_ppm: self.ppm,
            is_last,
        }
    }

    /// For the status line.
    pub(super) fn overhead(&mut self, used: &Used) -> Overhead {
        let ledger = self.ledger(used);
        let (work_ns, spent_ns) = self.between(&self.told, used);
        self.told = *used;
        let ratio = |part: f64, whole: f64, none| if whole > 0.0 { part / whole } else { none };
        Overhead {
            now: ratio(spent_ns, work_ns, 0.0),
            budget: self.share(),
            observed: ratio(ledger.observed_work_ns(), ledger.work_ns(), 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SAMPLES_PER_NS: f64 = 4e-6;

    /// A target that works all the time on so many processors and calls so often, and what a
    /// call costs: hit, recording in the kernel, recording in the collector.
    struct Model {
        processors: f64,
        calls_per_work_ms: f64,
        hit_ns: f64,
        recording_ns: f64,
        collecting_ns: f64,
        idle_collector: f64,
        call_bytes: f64,
        /// By what the real cost of a hit exceeds what is counted.
        dearer: f64,
        work_ns: f64,
        samples: f64,
        work_samples: f64,
        used: Used,
    }

    impl Model {
        fn new(calls_per_work_ms: f64) -> Self {
            Self {
                processors: 1.0,
                calls_per_work_ms,
                hit_ns: 1000.0,
                recording_ns: 700.0,
                collecting_ns: 300.0,
                idle_collector: 0.003,
                call_bytes: 64.0,
                dearer: 1.0,
                work_ns: 0.0,
                samples: 0.0,
                work_samples: 0.0,
                used: Used::default(),
            }
        }

        /// The target goes on for a while, slowed down by the probes if they are there.
        fn run(&mut self, time: Duration, interval_bytes: Option<u64>) {
            let cpu_ns = time.as_nanos() as f64 * self.processors;
            let drawn = interval_bytes
                .map_or(0.0, |interval| 1.0 - (-self.call_bytes / interval as f64).exp());
            let hit_ns = if interval_bytes.is_some() { self.hit_ns } else { 0.0 };
            let program_ns =
                if interval_bytes.is_some() { 200.0 } else { 0.0 } + drawn * self.recording_ns;
            let per_ms = self.calls_per_work_ms;
            let slower = 1.0 + per_ms * self.dearer * (hit_ns + program_ns) / 1e6;
            let calls = cpu_ns / slower / 1e6 * per_ms;
            let used = &mut self.used;
            used.now_ns += time.as_nanos() as u64;
            used.target_cpu_ns += cpu_ns as u64;
            if interval_bytes.is_some() {
                self.samples += cpu_ns * SAMPLES_PER_NS;
                self.work_samples += cpu_ns * SAMPLES_PER_NS / slower;
                used.probes.work_samples = self.work_samples as u64;
                used.probes.probe_samples = (self.samples - self.work_samples) as u64;
            }
            self.work_ns += cpu_ns / slower;
            used.probes.traps_ns += (calls * hit_ns) as u64;
            used.probes.programs_ns += (calls * program_ns) as u64;
            used.collector_cpu_ns += (calls * drawn * self.collecting_ns
                + time.as_nanos() as f64 * self.idle_collector)
                as u64;
        }
    }

    /// What came of a trace.
    #[derive(Debug)]
    struct Outcome {
        overhead: f64,
        observed: f64,
        windows: Vec<Window>,
        interval_bytes: u64,
    }

    fn trace(model: &mut Model, ppm: u32, seconds: u64) -> Outcome {
        let mut budget = Budget::new(ppm, 1, 7, model.used);
        let mut windows = Vec::new();
        while model.used.now_ns < seconds * 1000 * MS {
            let step = budget.step(&model.used);
            match step.action {
                Action::None | Action::Draw(_) => {}
                Action::Close => windows.push(budget.closed(&model.used)),
                Action::Open => budget.opened(&model.used),
            }
            let interval = budget.is_open().then(|| budget.interval_bytes());
            model.run(step.wait, interval);
        }
        let interval_bytes = budget.interval_bytes();
        windows.push(budget.finish(&model.used));
        let all = |value: fn(&Window) -> u64| windows.iter().map(value).sum::<u64>();
        let cpu_ns = all(|window| window.observed_cpu_ns + window.missed_cpu_ns);
        assert_eq!(cpu_ns, model.used.target_cpu_ns, "no work is left out");
        let collector_ns = all(|window| window.collector_cpu_ns);
        assert_eq!(collector_ns, model.used.collector_cpu_ns, "no cost is left out");
        assert_eq!(all(|window| window.probe_cost_ns), model.used.probes.kernel_ns());
        let cost_ns = cpu_ns as f64 - model.work_ns;
        let missed_ns = all(|window| window.missed_cpu_ns) as f64;
        Outcome {
            overhead: (cost_ns + collector_ns as f64) / model.work_ns,
            observed: 1.0 - missed_ns / model.work_ns,
            windows,
            interval_bytes,
        }
    }

    #[test]
    fn a_budget_that_is_enough_leaves_everything_observed() {
        let found = trace(&mut Model::new(10.0), 50_000, 20);
        assert!(found.overhead < 0.05, "{found:?}");
        assert_eq!((found.windows.len(), found.interval_bytes), (1, 1), "{found:?}");
        assert!(found.windows[0].is_last);
        assert_eq!(found.windows[0].missed_cpu_ns, 0);
    }

    #[test]
    fn drawing_less_comes_before_observing_less() {
        // Everything: 30 × 2.2 µs per ms, 6.6 %; the hits alone: 3.6 %.
        let found = trace(&mut Model::new(30.0), 50_000, 60);
        assert!((0.03..=0.055).contains(&found.overhead), "{found:?}");
        assert!(found.observed > 0.9, "{found:?}");
        assert!(found.interval_bytes > 1, "{found:?}");
    }

    #[test]
    fn what_sampling_cannot_save_is_saved_by_not_observing() {
        for calls_per_work_ms in [100.0, 300.0, 2000.0] {
            for (ppm, processors) in [(10_000, 1.0), (50_000, 1.0), (50_000, 8.0), (200_000, 2.0)] {
                if f64::from(ppm) / 1e6 > calls_per_work_ms * 1.2e-3 {
                    // The hits alone are within the budget.
                    continue;
                }
                let mut model = Model { processors, ..Model::new(calls_per_work_ms) };
                let found = trace(&mut model, ppm, 30);
                let budget = f64::from(ppm) / 1e6;
                let off = (found.overhead - budget).abs();
                let observed = found.observed;
                let all = calls_per_work_ms * 1.2e-3;
                assert!(
                    off < 0.1 * budget + 0.001,
                    "{calls_per_work_ms} {ppm}: {} {observed}",
                    found.overhead
                );
                assert!(observed < 1.2 * budget / all, "{calls_per_work_ms} {ppm}: {observed}");
                assert!(found.windows.len() > 5, "{}", found.windows.len());
            }
        }
    }

    /// What a hit costs in a real program is found out.
    #[test]
    fn the_budget_is_kept_if_hits_are_dearer_than_they_were_measured() {
        for dearer in [0.8, 1.3, 2.0] {
            let mut model = Model { dearer, ..Model::new(1000.0) };
            let found = trace(&mut model, 50_000, 60);
            assert!((found.overhead - 0.05).abs() < 0.005, "{dearer}: {}", found.overhead);
        }
    }

    #[test]
    fn a_target_that_does_nothing_is_looked_at_all_the_same() {
        let mut model = Model { processors: 0.001, ..Model::new(1000.0) };
        let found = trace(&mut model, 50_000, 120);
        assert!((8..20).contains(&found.windows.len()), "{}", found.windows.len());
    }

    #[test]
    fn windows_follow_each_other() {
        let found = trace(&mut Model::new(500.0), 50_000, 10);
        for pair in found.windows.windows(2) {
            assert!(pair[0].begin_ns < pair[0].end_ns && pair[0].end_ns <= pair[1].begin_ns);
            assert!(!pair[0].is_last && pair[1].missed_cpu_ns > 0);
        }
    }
}
