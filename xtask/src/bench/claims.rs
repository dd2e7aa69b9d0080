//! What memscope is to show, held to what was measured.

use std::collections::BTreeSet;

use super::results::{Overhead, Results, Run, Spread};
use super::tracers::{
    BARE_TRAP, BPFTRACE, CALLER, DHAT, ELSEWHERE, EMPTY, FLOOR, FULL, HEAPTRACK, HEAPTRACK_RAW,
    MAPPINGS_ELSEWHERE, MASSIF, MEMCHECK, NONE, SAMPLED,
};
use super::workloads::{WORKLOADS, Workload};

/// Modes of memscope that are to lose nothing.
const MODES: [&str; 3] = [FULL, CALLER, SAMPLED];
const MOST_BYTES_PER_EVENT: f64 = 6.0;
/// What [`super::memscope::BUDGET`] allows, and by how much it may be missed.
const BUDGET: f64 = 0.05;
const BUDGET_TOLERANCE: f64 = 0.02;

/// A comparison of two tracers' costs.
struct Comparison {
    claim: &'static str,
    tracer: &'static str,
    base: &'static str,
    on: On,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum On {
    These(&'static [&'static str]),
    /// The same, compared side by side: where the limit is near, what one differs from the other by is less than what the
    /// machine's pace changes by between two runs.
    SideBySide(&'static [&'static str]),
    RealPrograms,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

const COMPARISONS: &[Comparison] = &[
    Comparison {
        claim: "without stacks at most 1.10 × the floor",
        tracer: CALLER,
        base: FLOOR,
        on: On::SideBySide(&["pairs"]),
        bound: Bound::AtMost(1.10),
    },
    Comparison {
        claim: "with complete stacks at depth 20 at most 1.3 × the floor",
        tracer: FULL,
        base: FLOOR,
        on: On::SideBySide(&["depth-20"]),
        bound: Bound::AtMost(1.3),
    },
    Comparison {
        claim: "without stacks at most 1.10 × empty programs in the place of its own",
        tracer: CALLER,
        base: EMPTY,
        on: On::SideBySide(&["pairs"]),
        bound: Bound::AtMost(1.10),
    },
    Comparison {
        claim: "with complete stacks at depth 20 at most 1.3 × empty programs in the place of its own",
        tracer: FULL,
        base: EMPTY,
        on: On::SideBySide(&["depth-20"]),
        bound: Bound::AtMost(1.3),
    },
    Comparison {
        claim: "the naive bpftrace tracer costs at least 6 × as much",
        tracer: BPFTRACE,
        base: FULL,
        on: On::SideBySide(&["pairs", "depth-20"]),
        bound: Bound::AtLeast(6.0),
    },
    Comparison {
        claim: "cheaper than DHAT on every real program",
        tracer: FULL,
        base: DHAT,
        on: On::RealPrograms,
        bound: Bound::AtMost(1.0),
    },
    Comparison {
        claim: "cheaper than memcheck on every real program",
        tracer: FULL,
        base: MEMCHECK,
        on: On::RealPrograms,
        bound: Bound::AtMost(1.0),
    },
    Comparison {
        claim: "cheaper than massif on every real program",
        tracer: FULL,
        base: MASSIF,
        on: On::RealPrograms,
        bound: Bound::AtMost(1.0),
    },
    Comparison {
        claim: "within 1.25 × of DHAT on the tight loop",
        tracer: FULL,
        base: DHAT,
        on: On::SideBySide(&["pairs"]),
        bound: Bound::AtMost(1.25),
    },
    Comparison {
        claim: "at most 1.5 × heaptrack's slowdown on real programs",
        tracer: FULL,
        base: HEAPTRACK,
        on: On::RealPrograms,
        bound: Bound::AtMost(1.5),
    },
    Comparison {
        claim: "ahead of heaptrack on the multi-threaded loop",
        tracer: FULL,
        base: HEAPTRACK,
        on: On::These(&["threads-2", "threads-8"]),
        bound: Bound::AtMost(1.0),
    },
    Comparison {
        claim: "at most 1.5 × the slowdown of `heaptrack --raw` on real programs",
        tracer: FULL,
        base: HEAPTRACK_RAW,
        on: On::RealPrograms,
        bound: Bound::AtMost(1.5),
    },
    Comparison {
        claim: "ahead of `heaptrack --raw` on the multi-threaded loop",
        tracer: FULL,
        base: HEAPTRACK_RAW,
        on: On::These(&["threads-2", "threads-8"]),
        bound: Bound::AtMost(1.0),
    },
    Comparison {
        claim: "sampled, the cost is the bare trap (within 1.10 ×)",
        tracer: SAMPLED,
        base: BARE_TRAP,
        on: On::SideBySide(&["pairs"]),
        bound: Bound::AtMost(1.10),
    },
    Comparison {
        claim: "`--probes host` costs processes that are not traced the bare trap (within 1.25 ×)",
        tracer: ELSEWHERE,
        base: BARE_TRAP,
        on: On::SideBySide(&["pairs"]),
        bound: Bound::AtMost(1.25),
    },
    Comparison {
        claim: "`--mappings` makes the cheapest system call of processes that are not traced at most 2 × as long",
        tracer: MAPPINGS_ELSEWHERE,
        base: NONE,
        on: On::These(&["system-calls"]),
        bound: Bound::AtMost(2.0),
    },
];

impl Bound {
    fn holds(self, measured: Spread) -> bool {
        match self {
            Self::AtMost(limit) => measured.median <= limit,
            Self::AtLeast(limit) => measured.median >= limit,
        }
    }
}

impl Comparison {
    /// The same two, if memscope did nothing in its probes.
    fn with_empty_programs(&self) -> Option<(&'static str, &'static str)> {
        match (self.tracer, self.base) {
            (FULL, FLOOR | EMPTY) => None,
            (FULL, base) => Some((EMPTY, base)),
            (tracer, FULL) => Some((tracer, EMPTY)),
            _ => None,
        }
    }
}

/// Tracers that are compared side by side on a program.
pub(super) fn side_by_side(
    workload: &Workload,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    let compared = COMPARISONS.iter().filter(|comparison| {
        matches!(comparison.on, On::SideBySide(_)) && comparison.on.has(workload)
    });
    compared.map(|comparison| (comparison.tracer, comparison.base))
}

/// A claim on one workload.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) claim: &'static str,
    pub(super) workload: String,
    /// What is compared, for people.
    pub(super) what: String,
    /// None if one side was not measured.
    pub(super) measured: Option<Spread>,
    /// The same of runs one after the other, by the program's processor time, which others on the machine hardly change. None
    /// where it is no time.
    pub(super) by_processor_time: Option<Spread>,
    /// What would be measured if memscope's programs did nothing. None where it is compared with another tracer of probes.
    pub(super) of_empty_programs: Option<Spread>,
    pub(super) bound: Bound,
}

impl Verdict {
    /// By the median.
    pub(super) fn holds(&self) -> Option<bool> {
        self.measured.map(|measured| self.bound.holds(measured))
    }

    /// Whether no tracer by probes could hold it here.
    pub(super) fn is_below_empty_programs(&self) -> bool {
        self.of_empty_programs.is_some_and(|floor| !self.bound.holds(floor))
    }
}

pub(super) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for comparison in COMPARISONS {
        let (tracer, base) = (comparison.tracer, comparison.base);
        for workload in WORKLOADS.iter().filter(|workload| comparison.on.has(workload)) {
            let name = workload.name;
            let (how, measured) = match comparison.on {
                On::SideBySide(_) => (", side by side", results.beside(name, tracer, base)),
                On::These(_) | On::RealPrograms => ("", results.slowdown(name, tracer, base)),
            };
            verdicts.push(Verdict {
                claim: comparison.claim,
                workload: name.to_owned(),
                what: format!("{tracer} / {base}{how}"),
                measured,
                by_processor_time: results.ratio(name, tracer, base, Run::cpu_ns_per_unit),
                of_empty_programs: comparison
                    .with_empty_programs()
                    .and_then(|(tracer, base)| results.slowdown(name, tracer, base)),
                bound: comparison.bound,
            });
        }
    }
    verdicts.extend(of_budget(results));
    let lost = |workload: &str, mode: &str| {
        let lost = results.memscope(workload, mode, |figures| Some(figures.lost_events as f64))?;
        // A single event in a single run is loss.
        Some(Spread { median: lost.most, ..lost })
    };
    verdicts.push(of_the_worst("loses no event", "lost", Bound::AtMost(0.0), &MODES, lost));
    verdicts.push(of_the_worst(
        "records an event in at most 6 bytes",
        "bytes",
        Bound::AtMost(MOST_BYTES_PER_EVENT),
        &[FULL],
        |workload, mode| bytes_per_event(results, workload, mode),
    ));
    verdicts
}

/// Of programs that were traced with a budget: that it was kept, and that memscope knows what it has spent.
fn of_budget(results: &Results) -> Vec<Verdict> {
    let kept: fn(&Overhead) -> f64 = |overhead| 1.0 + overhead.together();
    let known: fn(&Overhead) -> f64 = |overhead| (overhead.told - overhead.together()).abs();
    let verdict = |claim, what: &str, value, limit| {
        let workloads = WORKLOADS.iter().filter(|workload| workload.is_beside_untraced());
        let verdicts = workloads.map(|workload| Verdict {
            claim,
            workload: workload.name.to_owned(),
            what: what.to_owned(),
            measured: results.overhead(workload.name, value),
            by_processor_time: None,
            of_empty_programs: None,
            bound: Bound::AtMost(limit),
        });
        verdicts.collect::<Vec<_>>()
    };
    let mut verdicts = verdict(
        "`--max-overhead 5%` holds, give or take 2 points",
        "program and memscope / none",
        kept,
        1.0 + BUDGET + BUDGET_TOLERANCE,
    );
    verdicts.extend(verdict(
        "`--max-overhead 5%` says what it has cost, give or take 2 points",
        "told and measured, apart",
        known,
        BUDGET_TOLERANCE,
    ));
    verdicts
}

/// A claim on all workloads, held to the one with the highest value.
fn of_the_worst(
    claim: &'static str,
    what: &str,
    bound: Bound,
    modes: &[&str],
    value: impl Fn(&str, &str) -> Option<Spread>,
) -> Verdict {
    let of_all = WORKLOADS.iter().flat_map(|workload| {
        modes.iter().filter_map(|mode| Some((workload.name, value(workload.name, mode)?)))
    });
    let of_all: Vec<_> = of_all.collect();
    let worst = of_all.iter().max_by(|one, other| one.1.median.total_cmp(&other.1.median));
    let measured = of_all.iter().map(|(workload, _)| workload).collect::<BTreeSet<_>>().len();
    let workload =
        worst.map_or("all".to_owned(), |(name, _)| format!("all {measured}; most: {name}"));
    Verdict {
        claim,
        workload,
        what: what.to_owned(),
        measured: worst.map(|(_, spread)| *spread),
        by_processor_time: None,
        of_empty_programs: None,
        bound,
    }
}

pub(super) fn bytes_per_event(results: &Results, workload: &str, mode: &str) -> Option<Spread> {
    results.memscope(workload, mode, |figures| {
        Some(figures.recording_bytes as f64 / figures.events.filter(|events| *events > 0)? as f64)
    })
}

impl On {
    fn has(self, workload: &Workload) -> bool {
        match self {
            On::These(names) | On::SideBySide(names) => names.contains(&workload.name),
            On::RealPrograms => workload.is_real_program(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::MemscopeFigures;
    use super::super::results::tests::{both, results, run};
    use super::super::tracers::Tracer;
    use super::*;

    fn found<'a>(verdicts: &'a [Verdict], claim: &str, workload: &str) -> &'a Verdict {
        let mut of = verdicts
            .iter()
            .filter(|verdict| verdict.claim.contains(claim) && verdict.workload.contains(workload));
        of.next().unwrap_or_else(|| panic!("no claim {claim} on {workload}"))
    }

    #[test]
    fn claims_are_decided_by_the_medians() {
        let costs = [(BPFTRACE, 5999.0), (EMPTY, 900.0), (DHAT, 800.0)];
        let mut runs = costs.map(|(tracer, cost)| run("pairs", tracer, 1, cost)).to_vec();
        runs.extend(both("pairs", [CALLER, FLOOR], [991, 900]));
        runs.extend(both("pairs", [FULL, DHAT], [1000, 800]));
        runs.extend(both("pairs", [BPFTRACE, FULL], [5999, 1000]));
        runs.extend([
            run("stl", FULL, 1, 15.0),
            run("stl", HEAPTRACK, 1, 10.0),
            run("stl", DHAT, 1, 14.9),
        ]);
        let verdicts = verdicts(&results(runs));
        let holds = |claim, workload| found(&verdicts, claim, workload).holds();
        assert_eq!(holds("without stacks", "pairs"), Some(false));
        assert_eq!(holds("within 1.25", "pairs"), Some(true));
        assert_eq!(holds("naive bpftrace", "pairs"), Some(false));
        assert_eq!(holds("naive bpftrace", "depth-20"), None);
        assert_eq!(holds("1.5 × heaptrack's slowdown", "stl"), Some(true));
        assert_eq!(holds("than DHAT", "stl"), Some(false));
        assert_eq!(holds("than massif", "stl"), None);
        let is_below = |claim| found(&verdicts, claim, "pairs").is_below_empty_programs();
        assert!(!is_below("naive bpftrace"), "5999 is more than 6 times 900");
        assert!(!is_below("within 1.25"));
        assert!(!is_below("without stacks"), "they are not compared with themselves");
        assert!(
            verdicts
                .iter()
                .all(|verdict| !verdict.claim.contains("real") || verdict.workload != "pairs")
        );
    }

    #[test]
    fn what_empty_programs_cannot_hold_is_below_them() {
        let runs = [(EMPTY, 1001.0), (DHAT, 800.0)];
        let mut runs = runs.map(|(tracer, cost)| run("pairs", tracer, 1, cost)).to_vec();
        runs.extend(both("pairs", [FULL, DHAT], [1500, 800]));
        let verdicts = verdicts(&results(runs));
        let verdict = found(&verdicts, "within 1.25", "pairs");
        assert_eq!((verdict.holds(), verdict.is_below_empty_programs()), (Some(false), true));
    }

    #[test]
    fn one_lost_event_in_one_run_is_loss() {
        let figures = |lost_events| MemscopeFigures {
            cpu_ns: 1,
            peak_rss_bytes: 1,
            lost_events,
            recording_bytes: 65,
            events: Some(10),
            complete_stacks: 1,
            truncated_stacks: 0,
            budget: None,
        };
        let mut runs: Vec<_> = (1..=3).map(|round| run("redis", SAMPLED, round, 1.0)).collect();
        runs.push(run("redis", FULL, 1, 1.0));
        for run in &mut runs {
            run.memscope = Some(figures(0));
        }
        let verdict = |runs: &[_]| {
            found(&verdicts(&results(runs.to_vec())), "loses no event", "redis").holds()
        };
        assert_eq!(verdict(&runs), Some(true));
        runs[1].memscope = Some(figures(1));
        assert_eq!(verdict(&runs), Some(false));
        let bytes = bytes_per_event(&results(runs), "redis", FULL).unwrap();
        assert!((bytes.median - 6.5).abs() < 1e-9);
    }

    #[test]
    fn the_budget_that_is_claimed_is_the_one_that_is_given() {
        assert_eq!(format!("{}%", 100.0 * BUDGET), super::super::memscope::BUDGET);
    }

    #[test]
    fn what_is_compared_exists() {
        for comparison in COMPARISONS {
            assert!(
                Tracer::named(comparison.tracer).is_some()
                    && Tracer::named(comparison.base).is_some()
            );
            assert!(
                WORKLOADS.iter().any(|workload| comparison.on.has(workload)),
                "{}",
                comparison.claim
            );
            if let On::These(names) | On::SideBySide(names) = comparison.on {
                assert!(names.iter().all(|name| Workload::named(name).is_some()));
            }
        }
    }
}
