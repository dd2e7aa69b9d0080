//! Runs programs under tracers, in rounds, so that a machine whose pace changes changes it for all of them.

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memscope_tests::floor::RunTimes;
use memscope_tests::resources::on_processor;
use tempfile::TempDir;

use super::claims::side_by_side;
use super::machine;
use super::pace::Pace;
use super::results::{Results, Run, Skipped};
use super::sites::{EmptyPrograms, Sites, Where};
use super::tracers::{Attached, Kind, Kit, Prepared, Tracer};
use super::workloads::{Launch, Running, Work, Workload};

/// How often a run is repeated if the machine was slow after it, at most.
const MAX_REPEATS: u32 = 2;
/// Longer ones are not: the pace changes in less.
const MAX_REPEATED: Duration = Duration::from_secs(2);
/// How long programs work that are compared side by side: each so much that both are done at about the same time.
const SIDE_BY_SIDE: Duration = Duration::from_secs(1);
const SIDE_BY_SIDE_QUICK: Duration = Duration::from_millis(100);

/// What is to be run.
pub(super) struct Plan {
    pub(super) workloads: Vec<&'static Workload>,
    pub(super) tracers: Vec<&'static Tracer>,
    pub(super) rounds: u32,
    pub(super) quick: bool,
}

/// Measures; returns what went wrong. A run that failed is not in the results.
pub(super) fn measure(plan: &Plan, kit: &Kit, results: &mut Results) -> Result<Vec<String>> {
    let pace = Pace::new()?;
    let mut problems = Vec::new();
    let mut skip = |what: &str, reason: String| {
        let skipped = Skipped { what: what.to_owned(), reason };
        println!("SKIPPED: {skipped}");
        results.skipped.push(skipped);
    };
    let mut tracers = plan.tracers.clone();
    tracers.retain(|tracer| match tracer.missing(kit) {
        Some(reason) => {
            skip(tracer.name, reason);
            false
        }
        None => true,
    });
    let mut workloads = plan.workloads.clone();
    workloads.retain(|workload| match workload.missing() {
        Some(reason) => {
            skip(workload.name, reason);
            false
        }
        None => true,
    });
    for workload in workloads {
        let mut tracers = tracers.clone();
        tracers.retain(|tracer| workload.is_for(tracer));
        // Nothing to compare it with was chosen.
        if tracers.len() < plan.tracers.len().min(2) {
            continue;
        }
        let measured = Measurement { workload, kit, quick: plan.quick, pace: &pace };
        match measured.scout(&tracers) {
            Ok((sites, floor)) => {
                if let Some(floor) = floor {
                    results.machine.floor = floor.to_owned();
                }
                let mut log = Log {
                    workload: workload.name,
                    checksum: None,
                    results,
                    problems: &mut problems,
                };
                measured.rounds(&tracers, plan.rounds, &sites, &mut log);
            }
            Err(error) => problems.push(format!("{}: {error:#}", workload.name)),
        }
    }
    results.machine.load[1] = machine::load()?;
    Ok(problems)
}

struct Measurement<'a> {
    workload: &'static Workload,
    kit: &'a Kit,
    quick: bool,
    pace: &'a Pace,
}

impl Measurement<'_> {
    /// Looks at the program once, little as it does: where it is probed, and that programs on these instructions run
    /// as often as it allocates. In the rounds this is not counted, because to count takes time.
    fn scout(&self, tracers: &[&Tracer]) -> Result<(Sites, Option<&'static str>)> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let amount = self.workload.amount(true);
        let program = self.workload.start(amount, &Launch::default(), folder.path())?;
        let sites = Sites::of(&self.kit.memscope, program.pid())?;
        program.finish()?;
        let mut how = None;
        for tracer in tracers {
            let Kind::Empty(place) = tracer.kind else { continue };
            let mut program = self.workload.start(amount, &Launch::default(), folder.path())?;
            let empty = EmptyPrograms::attach(&sites, program.pid(), place)?;
            let _counting = RunTimes::measure().context("the kernel does not count runs")?;
            let at_least = program.work()?.allocations_at_least;
            let (runs, per_allocation) =
                (empty.runs()?, if place == Where::EntryAndReturn { 2 } else { 1 });
            program.finish()?;
            if runs < per_allocation * at_least {
                bail!("{}: programs ran {runs} times for {at_least} allocations", tracer.name);
            }
            if place == Where::EntryAndReturn {
                how = Some(empty.how);
            }
        }
        Ok((sites, how))
    }

    fn rounds(&self, tracers: &[&Tracer], rounds: u32, sites: &Sites, log: &mut Log) {
        for round in 1..=rounds {
            if self.workload.is_beside_untraced() {
                let Some(untraced) = tracers.iter().find(|tracer| tracer.kind == Kind::None) else {
                    continue;
                };
                for traced in tracers.iter().filter(|tracer| tracer.kind != Kind::None) {
                    let amount = self.workload.amount(self.quick);
                    let both = [*untraced, *traced];
                    log.enter_both(both, round, self.run_beside(both, [amount; 2], sites));
                }
                continue;
            }
            for tracer in rotated(tracers, round as usize) {
                log.enter(tracer, round, self.run(tracer, sites));
            }
            self.side_by_side(tracers, round, sites, log);
        }
    }

    /// Those of the tracers that are compared side by side on this program.
    fn side_by_side(&self, tracers: &[&Tracer], round: u32, sites: &Sites, log: &mut Log) {
        let chosen = |name| tracers.iter().copied().find(|tracer| tracer.name == name);
        for (tracer, base) in side_by_side(self.workload) {
            let Some(both) = chosen(base).zip(chosen(tracer)).map(<[_; 2]>::from) else { continue };
            let amounts = both.map(|tracer| log.amount_of(tracer, round, self.time_side_by_side()));
            // One of them has failed in this round.
            let [Some(one), Some(other)] = amounts else { continue };
            let outcome = self.run_beside(both, [one, other], sites).map(|mut done| {
                done[0].run.beside = Some(both[1].name.to_owned());
                done[1].run.beside = Some(both[0].name.to_owned());
                done
            });
            log.enter_both(both, round, outcome);
        }
    }

    fn time_side_by_side(&self) -> Duration {
        if self.quick { SIDE_BY_SIDE_QUICK } else { SIDE_BY_SIDE }
    }

    /// One program under one tracer, when the machine is as quick as it can be, if it ever is.
    fn run(&self, tracer: &Tracer, sites: &Sites) -> Result<Done> {
        for _repeat in 0..MAX_REPEATS {
            let done = self.run_once(tracer, sites)?;
            let is_short = Duration::from_nanos(done.run.wall_ns) <= MAX_REPEATED;
            if !done.run.slow_machine || !is_short || self.quick {
                return Ok(done);
            }
        }
        self.run_once(tracer, sites)
    }

    fn run_once(&self, tracer: &Tracer, sites: &Sites) -> Result<Done> {
        // Before the program is there, and below when it and the tracer are gone: what a tracer does beside the program slows
        // the machine down as well, and must neither be given time before the program works nor be a reason to repeat the run.
        self.pace.wait()?;
        let amount = if tracer.costs_next_to_nothing() {
            self.workload.amount_untraced(self.quick)
        } else {
            self.workload.amount(self.quick)
        };
        let mut started = self.start(tracer, sites, amount)?;
        let attached = started.attach(self.kit, tracer, sites)?;
        let work = started.program.work()?;
        let mut done = self.end(tracer, started, attached, work)?;
        done.run.slow_machine = !self.pace.is_quick()?;
        Ok(done)
    }

    /// A program under one tracer and one under another, at the same time, on one processor, which they take by turns of some
    /// milliseconds: so the pace of the machine is the same for both, whatever it is. All else is on another processor,
    /// if there is one. The cost is processor time.
    fn run_beside(
        &self,
        [one, other]: [&Tracer; 2],
        [of_one, of_other]: [u64; 2],
        sites: &Sites,
    ) -> Result<[Done; 2]> {
        let shared = |start, amount| on_processor(0, || self.start(start, sites, amount));
        let (mut first, mut second) = (shared(one, of_one)??, shared(other, of_other)??);
        let rest = self.pace.processors() - 1;
        let (to_first, to_second) = on_processor(rest, || {
            let to_first = first.attach(self.kit, one, sites);
            to_first.and_then(|to_first| Ok((to_first, second.attach(self.kit, other, sites)?)))
        })??;
        let (of_first, of_second) = thread::scope(|scope| {
            let working = scope.spawn(|| on_processor(rest, || second.program.work()));
            let of_first = on_processor(rest, || first.program.work());
            (of_first, working.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let ended = [
            self.end(one, first, to_first, of_first??)?,
            self.end(other, second, to_second, of_second??)?,
        ];
        Ok(ended.map(|mut done| {
            done.run.cost_ns = done.run.cpu_ns_per_unit();
            done
        }))
    }

    /// Starts the program, which waits.
    fn start(&self, tracer: &Tracer, sites: &Sites, amount: u64) -> Result<Started> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let prepared = tracer.prepare(self.kit, sites, folder.path())?;
        let program = self.workload.start(amount, &prepared.launch, folder.path())?;
        Ok(Started { folder, prepared, program })
    }

    /// Lets a program end that has done its work, and looks whether the tracer has seen it.
    fn end(
        &self,
        tracer: &Tracer,
        started: Started,
        attached: Attached,
        work: Work,
    ) -> Result<Done> {
        let output = started.program.finish()?;
        let at_least = work.allocations_at_least;
        let seen = tracer.check(attached, &output, at_least, started.folder.path())?;
        if seen.disturbed {
            eprintln!("NOTE: somebody has the kernel count runs of programs, which takes time");
        }
        let run = Run {
            workload: self.workload.name.to_owned(),
            tracer: tracer.name.to_owned(),
            round: 0,
            beside: None,
            cost_ns: work.cost_ns,
            units: work.units,
            wall_ns: work.wall_ns,
            cpu_ns: work.cpu_ns,
            allocations: seen.allocations,
            disturbed: seen.disturbed,
            slow_machine: false,
            memscope: seen.memscope,
        };
        Ok(Done { run, checksum: work.checksum })
    }
}

/// A program that waits to be told to work.
struct Started {
    folder: TempDir,
    prepared: Prepared,
    program: Running,
}

impl Started {
    fn attach(&mut self, kit: &Kit, tracer: &Tracer, sites: &Sites) -> Result<Attached> {
        tracer.attach(kit, sites, &self.prepared, self.program.pid(), self.folder.path())
    }
}

/// A run, and what the program computed.
struct Done {
    run: Run,
    checksum: Option<String>,
}

/// Where the runs of a program are entered.
struct Log<'a> {
    workload: &'static str,
    /// Of its first run.
    checksum: Option<Option<String>>,
    results: &'a mut Results,
    problems: &'a mut Vec<String>,
}

impl Log<'_> {
    /// How much takes so long, by a run of this round.
    fn amount_of(&self, tracer: &Tracer, round: u32, time: Duration) -> Option<u64> {
        let mut runs = self.results.of(self.workload, tracer.name);
        let run = runs.find(|run| run.round == round)?;
        Some((time.as_nanos() as f64 / run.cpu_ns_per_unit()) as u64)
    }

    /// Runs at the same time. If one fails there is none of both, which the second is named for, as the first is what it is compared
    /// with.
    fn enter_both(&mut self, both: [&Tracer; 2], round: u32, outcome: Result<[Done; 2]>) {
        match outcome {
            Ok(done) => {
                for (tracer, done) in both.into_iter().zip(done) {
                    self.enter(tracer, round, Ok(done));
                }
            }
            Err(error) => self.enter(both[1], round, Err(error)),
        }
    }

    /// A run that has failed, or in which the program computed something else than before, is a problem and no result.
    fn enter(&mut self, tracer: &Tracer, round: u32, outcome: Result<Done>) {
        let (name, expected) = (self.workload, &mut self.checksum);
        let outcome = outcome.and_then(|done| {
            let expected = expected.get_or_insert_with(|| done.checksum.clone());
            if *expected != done.checksum {
                bail!("it computed {:?}, and {expected:?} before", done.checksum);
            }
            Ok(Run { round, ..done.run })
        });
        match outcome {
            Ok(run) => {
                let (cost_ns, tracer) = (run.cost_ns, &run.tracer);
                let beside = run.beside.as_ref().map(|other| format!(" beside {other}"));
                let beside = beside.unwrap_or_default();
                eprintln!("{name:<12} {tracer:<17} round {round}: {cost_ns:>13.0} ns{beside}");
                self.results.runs.push(run);
            }
            Err(error) => {
                let problem = format!("{name}, {}, round {round}: {error:#}", tracer.name);
                eprintln!("FAILED: {problem}");
                self.problems.push(problem);
            }
        }
    }
}

/// Each round begins with another one, so that none is always measured in the wake of the same other.
fn rotated<'a>(tracers: &[&'a Tracer], round: usize) -> impl Iterator<Item = &'a Tracer> {
    let first = round % tracers.len().max(1);
    tracers[first..].iter().chain(&tracers[..first]).copied()
}

#[cfg(test)]
mod tests {
    use super::super::tracers::TRACERS;
    use super::*;

    #[test]
    fn rounds_begin_with_different_tracers_and_have_all() {
        let tracers: Vec<&Tracer> = TRACERS.iter().take(3).collect();
        let names = |round| rotated(&tracers, round).map(|tracer| tracer.name).collect::<Vec<_>>();
        assert_eq!(names(1), [TRACERS[1].name, TRACERS[2].name, TRACERS[0].name]);
        assert_eq!(names(3), [TRACERS[0].name, TRACERS[1].name, TRACERS[2].name]);
        assert_eq!(rotated(&[], 1).count(), 0);
    }
}
