//! Sampled blocks: what they count for, and that what is estimated from them is right.

use super::{check, run};
use crate::{
    lifetimes::{Site, Spread, Tracker, deviations_for, interval, testing::parse},
    model::{AllocatedSince, Event, FreeCaller, ProbeId, ProcessId, StackId, ThreadId},
};

#[test]
fn a_sampled_block_counts_for_those_not_drawn() {
    // 1/p = 1/(1 − exp(−100/1000)) = 10.508…, of which the second block gets what is left.
    check(
        "every 1000
         1 malloc 100 = 0x10 @a
         1 malloc 100 = 0x20 @a
         1 free 0x10
         1 free 0x20",
        "allocated 21/2101, freed 21/2101, peak 21/2101, temporary 11
         0x10 100 @a 1→1 20ns
         0x20 100 @a 1→1 20ns",
    );
}

#[test]
fn a_block_much_larger_than_the_interval_counts_for_itself() {
    check(
        "every 1000
         1 malloc 100000 = 0x10 @a
         every 0
         1 malloc 7 = 0x20 @a",
        "allocated 2/100007, live 2/100007, peak 2/100007
         live 0x10 100000 @a
         live 0x20 7 @a",
    );
}

#[test]
fn a_sampled_block_is_reallocated_and_its_end_goes_unseen() {
    check(
        "every 1000
         1 malloc 100 = 0x10 @a
         1 realloc 0x10 5000 = 0x20 @a
         1 realloc 0x70 5000 = 0x30 @b
         1 malloc 9000 = 0x20 @b",
        "allocated 13/20119, freed 10/1050, unseen 1/5034, live 2/14035, peak 2/14035, reallocations 2, temporary 10
         0x10 100 @a 1→1 10ns
         0x20 5000 @a 1→? 20ns chain 30ns
         live 0x20 9000 @b
         live 0x30 5000 @b",
    );
}

#[test]
fn sampled_blocks_are_counted_by_what_became_of_them() {
    let (tracker, _) = run(&parse(
        "every 1000
         1 malloc 100 = 0x10 @a
         1 malloc 200 = 0x20 @a
         1 malloc 300 = 0x30 @a
         1 free 0x10
         every 0
         1 malloc 400 = 0x40 @b",
    ));
    let sites = tracker.sites();
    let sampled = sites[0].sampled.as_ref().unwrap();
    assert_eq!((sampled.blocks, sampled.freed_blocks, sampled.live_blocks), (3, 1, 2));
    let variance = |sizes: &[f64]| {
        let of = |size: &f64| {
            let weight = 1.0 / (1.0 - (-size / 1000.0).exp());
            weight * (weight - 1.0) * size * size
        };
        sizes.iter().map(of).sum::<f64>()
    };
    assert!(
        (sampled.allocated.bytes.variance / variance(&[100.0, 200.0, 300.0]) - 1.0).abs() < 1e-9
    );
    assert!((sampled.live.bytes.variance / variance(&[200.0, 300.0]) - 1.0).abs() < 1e-9);
    assert_eq!(sites[1].sampled, None);
}

#[test]
fn lifetimes_are_those_of_all_blocks_a_sampled_one_counts_for() {
    // The small block counts for ten, the large one for itself.
    let (tracker, _) = run(&parse(
        "every 1000
         1 malloc 100 = 0x10 @a
         1 malloc 100000 = 0x20 @a
         1 free 0x10
         +5000
         1 free 0x20",
    ));
    let summary = tracker.sites()[0].lifetimes.summary().unwrap();
    assert_eq!((summary.p50_ns, summary.p90_ns, summary.max_ns), (20, 20, 5020));
    assert!(summary.p99_ns > 4800);
}

/// splitmix64, by Steele, Lea and Flood 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }
}

const INTERVAL_BYTES: u64 = 512 << 10;
const SITES: u32 = 48;
const RUNS: u64 = 100;
const TOP: usize = 20;

struct Population {
    /// Site and size of each block.
    blocks: Vec<(u32, u64)>,
    /// True bytes of each site, allocated and live.
    allocated_bytes: Vec<f64>,
    live_bytes: Vec<f64>,
}

/// Every third block is freed.
const fn is_freed(number: usize) -> bool {
    number.is_multiple_of(3)
}

impl Population {
    /// Sites that ask for 16 B to 4 MiB, half of them always for the same, the others for
    /// sizes around it, in random order.
    fn new() -> Self {
        let mut random = Random(1);
        let mut blocks = Vec::new();
        for site in 0..SITES {
            let size_bytes = 16.0 * 2.0_f64.powf(18.0 * f64::from(site) / f64::from(SITES - 1));
            let wanted_bytes = 5e7 * random.exponential(1.0);
            let count = (wanted_bytes / size_bytes).clamp(20.0, 20_000.0) as u64;
            for _ in 0..count {
                let around = if site % 2 == 0 { 1.0 } else { 0.2 + random.exponential(0.8) };
                blocks.push((site, (size_bytes * around) as u64));
            }
        }
        for last in (1..blocks.len()).rev() {
            blocks.swap(last, (random.next() % (last as u64 + 1)) as usize);
        }
        let (mut allocated_bytes, mut live_bytes) =
            (vec![0.0; SITES as usize], vec![0.0; SITES as usize]);
        for (number, (site, size_bytes)) in blocks.iter().enumerate() {
            allocated_bytes[*site as usize] += *size_bytes as f64;
            if !is_freed(number) {
                live_bytes[*site as usize] += *size_bytes as f64;
            }
        }
        Self { blocks, allocated_bytes, live_bytes }
    }

    /// Draws blocks as the kernel side is to do: the distance to the next draw is counted
    /// down by bytes, and drawn anew where it ends.
    fn sample(&self, seed: u64) -> Tracker {
        let mut random = Random(seed);
        let mut tracker = Tracker::new();
        let mut left_bytes = random.exponential(INTERVAL_BYTES as f64);
        let (process, thread) = (ProcessId(1), ThreadId(1));
        for (number, (site, size_bytes)) in self.blocks.iter().enumerate() {
            left_bytes -= (*size_bytes).max(1) as f64;
            if left_bytes > 0.0 {
                continue;
            }
            left_bytes = random.exponential(INTERVAL_BYTES as f64);
            let (time_ns, address_avma) = (number as u64, 16 * (number as u64 + 1));
            tracker.apply(
                &Event::Allocation {
                    process,
                    thread,
                    time_ns,
                    address_avma,
                    size_bytes: *size_bytes,
                    stack: StackId(*site),
                    probe: ProbeId(0),
                    interval_bytes: INTERVAL_BYTES,
                },
                |_| {},
            );
            if is_freed(number) {
                let caller = FreeCaller::Program;
                tracker.apply(
                    &Event::Free { process, thread, time_ns, address_avma, probe: None, caller },
                    |_| {},
                );
            }
        }
        tracker
    }

    /// Sites with most bytes.
    fn top(&self) -> Vec<usize> {
        let mut sites: Vec<usize> = (0..SITES as usize).collect();
        sites.sort_by(|left, right| {
            self.allocated_bytes[*right].total_cmp(&self.allocated_bytes[*left])
        });
        sites.truncate(TOP);
        sites
    }
}

fn holds(site: &Site, deviations: f64, truth: f64) -> bool {
    let spread = site.sampled.as_ref().unwrap().allocated.bytes;
    let bounds = interval(site.sums.allocated_bytes as f64, &spread, deviations);
    (bounds.low - 1.0..=bounds.high + 1.0).contains(&truth)
}

#[test]
fn estimates_are_unbiased_and_within_their_intervals() {
    let population = Population::new();
    let top = population.top();
    let (together, alone) = (deviations_for(2 * TOP as u32), deviations_for(1));
    let (mut all_hold, mut each_holds, mut live_holds) = (0, 0, 0);
    let mut sums = [0.0; TOP];
    let mut drawn = 0;
    for seed in 0..RUNS {
        let sites = population.sample(1000 + seed).sites();
        let of = |stack: usize| sites.iter().find(|site| site.key.stack.index() == stack).unwrap();
        let truth = |stack: usize| population.allocated_bytes[stack];
        all_hold += usize::from(top.iter().all(|stack| holds(of(*stack), together, truth(*stack))));
        each_holds += top.iter().filter(|stack| holds(of(**stack), alone, truth(**stack))).count();
        for (sum, stack) in sums.iter_mut().zip(&top) {
            *sum += of(*stack).sums.allocated_bytes as f64;
        }
        let live = sites.iter().map(|site| site.sums.live_bytes()).sum::<u64>() as f64;
        let mut spread = Spread::default();
        for sampled in sites.iter().filter_map(|site| site.sampled.as_ref()) {
            spread.merge(&sampled.live.bytes);
        }
        let bounds = interval(live, &spread, alone);
        let live_truth = population.live_bytes.iter().sum::<f64>();
        live_holds += usize::from((bounds.low..=bounds.high).contains(&live_truth));
        drawn +=
            sites.iter().filter_map(|site| site.sampled.as_ref()).map(|s| s.blocks).sum::<u64>();
    }
    println!(
        "of {} blocks about {} drawn; the top {TOP} sites all within their intervals in {all_hold} of {RUNS} runs; each by itself in {each_holds} of {}; live bytes in {live_holds}",
        population.blocks.len(),
        drawn / RUNS,
        RUNS as usize * TOP,
    );
    assert!(all_hold >= 95, "{all_hold} of {RUNS}");
    assert!(each_holds * 100 >= 94 * RUNS as usize * TOP, "{each_holds}");
    assert!(live_holds >= 90, "{live_holds} of {RUNS}");
    for (sum, stack) in sums.iter().zip(&top) {
        let (mean, truth) = (sum / RUNS as f64, population.allocated_bytes[*stack]);
        // The mean of a hundred runs is ten times as exact as one of them: 1/√n of it.
        let draws = truth / INTERVAL_BYTES as f64;
        let allowed = 4.0 / (draws * RUNS as f64).sqrt();
        assert!((mean / truth - 1.0).abs() < allowed, "site {stack}: {mean} for {truth}");
    }
}

/// Blocks that were not drawn are in no event: that there were some is said.
#[test]
fn what_was_allocated_since_makes_a_block_no_temporary_one() {
    let trace = parse("1 malloc 1 = 0x10 @a\n1 free 0x10");
    for (since, temporary) in [(false, 1), (true, 0)] {
        let mut tracker = Tracker::new();
        tracker.apply(&trace.events[0], |_| {});
        if since {
            let (process, thread) = (ProcessId(1), ThreadId(1));
            tracker.allocated_since(&AllocatedSince { process, thread });
        }
        tracker.apply(&trace.events[1], |_| {});
        assert_eq!(
            (tracker.totals().frees, tracker.totals().temporary_allocations),
            (1, temporary)
        );
    }
}
