//! Targets that are observed in windows of time.

use super::{check, run};
use crate::{
    lifetimes::{Begun, Site, Totals, Tracker, Windows, deviations_for, testing::parse},
    model::{Event, ProbeId, ProcessId, StackId, ThreadId, Window},
};

#[test]
fn blocks_are_lost_sight_of_when_a_window_ends() {
    check(
        "1 malloc 100 = 0x10 @a
         1 malloc 200 = 0x20 @a
         1 free 0x20
         window 10 0 1
         1 malloc 300 = 0x10 @a
         window 10 80 1 last",
        "allocated 3/600, freed 1/200, unseen 1/100, live 1/300, peak 2/300, temporary 1
         0x20 200 @a 1→1 10ns
         0x10 100 @a 1→? 30ns
         live 0x10 300 @a",
    );
}

#[test]
fn what_lived_when_its_process_ended_is_live() {
    check(
        "1 malloc 100 = 0x10 @a
         2:1 malloc 50 = 0x10 @b
         end 1
         window 10 0 1
         2:1 free 0x10
         window 10 80 1",
        "allocated 2/150, unseen 1/50, live 1/100, peak 2/150, unknown 1
         0x10 50 @b 1→? 20ns
         live 0x10 100 @a",
    );
}

fn scaled(text: &str) -> (Vec<Site>, Totals, Windows) {
    let (tracker, _) = run(&parse(text));
    let (sites, totals) = tracker.scaled();
    (sites, totals, tracker.windows().clone())
}

#[test]
fn what_began_and_ended_is_scaled_by_work_and_what_lives_is_not() {
    // Work: 9 + 9 observed, 72 missed: five times as much in all.
    let (sites, totals, windows) = scaled(
        "1 malloc 100 = 0x10 @a
         1 free 0x10
         1 malloc 100 = 0x20 @a
         window 10 0 1
         1 malloc 7 = 0x30 @b
         window 10 72 1 last",
    );
    assert!((windows.scale() - 5.0).abs() < 1e-9);
    // (2 + 2 × 0.5) / 90
    assert!((windows.overhead().unwrap() - 3.0 / 90.0).abs() < 1e-9);
    assert_eq!((totals.allocations, totals.allocated_bytes), (15, 1035));
    assert_eq!((totals.frees, totals.freed_bytes), (5, 500));
    assert_eq!((totals.live_blocks, totals.live_bytes), (1, 7));
    assert_eq!((totals.unseen_ends, totals.unseen_end_bytes), (9, 528));
    assert_eq!((sites[0].sums.allocations, sites[0].sums.live_blocks()), (10, 0));
    assert_eq!((sites[1].sums.allocations, sites[1].sums.live_blocks()), (5, 1));
}

#[test]
fn a_trace_that_was_observed_all_the_time_is_not_scaled() {
    let (_, totals, windows) = scaled("1 malloc 100 = 0x10 @a\nwindow 10 0 1 last");
    assert!(!windows.has_gaps());
    assert_eq!((totals.allocations, totals.live_blocks), (1, 1));
}

#[test]
fn no_windows_of_any_size_lead_to_nonsense() {
    for numbers in ["0 0 0", "0 10 0", "10 10 10", "10 10 20", "1 0 0", "10 1000000 9"] {
        let text = format!("1 malloc 100 = 0x10 @a\nwindow {numbers}\nwindow {numbers} last");
        let (sites, totals, windows) = scaled(&text);
        assert!(windows.scale() >= 1.0 && windows.scale().is_finite(), "{numbers}");
        assert!(totals.allocations >= 1, "{numbers}");
        let spread = crate::lifetimes::Spread::default();
        let begun = sites[0].begun.as_deref();
        let within = windows.blocks_within(begun, totals.allocations, &spread, 2.0);
        assert!(within.low >= 0.0 && !within.high.is_nan(), "{numbers}: {within:?}");
        assert!(within.low <= totals.allocations as f64 + 1.0, "{numbers}: {within:?}");
    }
}

/// A target whose sites allocate at rates of their own, some of them in bursts, observed for a
/// tenth of its work; and whether the truth is within the bounds.
struct Population {
    random: u64,
}

impl Population {
    fn next(&mut self) -> f64 {
        // Marsaglia 2003, xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Calls of a site in a millisecond of work.
    fn calls(&mut self, site: u32, ms: u64) -> u64 {
        let mean = match site {
            0 => 40.0,
            1 => 3.0,
            // In phases.
            2 => {
                if (ms / 50).is_multiple_of(2) {
                    20.0
                } else {
                    0.0
                }
            }
            // Seldom, and much at once.
            _ => return if self.next() < 0.02 { 300 } else { 0 },
        };
        (mean * 2.0 * self.next()).round() as u64
    }

    fn trace(&mut self) -> (Tracker, [u64; 4]) {
        let mut tracker = Tracker::new();
        let mut truth = [0; 4];
        let (mut observed, mut missed, mut until) = (0, 0, 0_u64);
        let mut is_open = false;
        let mut address_avma = 0;
        for ms in 0..20_000_u64 {
            if ms == until {
                if is_open {
                    tracker.end_window(&window(observed, missed), |_| {});
                    (observed, missed) = (0, 0);
                }
                is_open = !is_open;
                until += if is_open { 20 } else { 100 + (160.0 * self.next()) as u64 };
            }
            if is_open {
                observed += 1
            } else {
                missed += 1
            }
            for (site, all) in truth.iter_mut().enumerate() {
                let calls = self.calls(site as u32, ms);
                *all += calls;
                for _ in 0..if is_open { calls } else { 0 } {
                    address_avma += 16;
                    tracker.apply(&allocation(ms, address_avma, site as u32), |_| {});
                }
            }
        }
        tracker.end_window(&window(observed, missed), |_| {});
        (tracker, truth)
    }
}

fn window(observed_ms: u64, missed_ms: u64) -> Window {
    // Probes make it twice as slow.
    Window {
        observed_cpu_ns: observed_ms * 2_000_000,
        missed_cpu_ns: missed_ms * 1_000_000,
        probe_cost_ns: observed_ms * 1_000_000,
        ..Window::default()
    }
}

fn allocation(ms: u64, address_avma: u64, site: u32) -> Event {
    Event::Allocation {
        process: ProcessId(1),
        thread: ThreadId(1),
        time_ns: ms * 1_000_000,
        address_avma,
        size_bytes: 64,
        stack: StackId(site),
        probe: ProbeId(0),
        interval_bytes: 0,
    }
}

#[test]
fn the_truth_is_within_the_bounds() {
    const RUNS: u64 = 60;
    let mut holds = [0; 4];
    let mut widths = [0.0; 4];
    for seed in 1..=RUNS {
        let (tracker, truth) = Population { random: seed * 0x9e37_79b9 }.trace();
        let (sites, _) = tracker.scaled();
        for site in &sites {
            let index = site.key.stack.index();
            let begun: Option<&Begun> = site.begun.as_deref();
            let within = tracker.windows().blocks_within(
                begun,
                site.sums.allocations,
                &crate::lifetimes::Spread::default(),
                deviations_for(1),
            );
            holds[index] += u64::from((within.low..=within.high).contains(&(truth[index] as f64)));
            widths[index] += (within.high - within.low) / truth[index] as f64 / RUNS as f64;
        }
    }
    println!("of {RUNS} runs {holds:?} within bounds {widths:.2?} of the truth apart");
    assert!(holds.iter().all(|holds| 100 * holds >= 90 * RUNS), "{holds:?}");
    // A steady site is known well, though it was observed for a tenth only: what is left is
    // what the cost of hits leaves open.
    assert!(widths[0] < 0.9 && widths[3] > widths[0], "{widths:?}");
}
