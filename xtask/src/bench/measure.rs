//! Runs programs under tracers, in rounds, so that a machine whose pace changes changes it for all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memscope_tests::floor::RunTimes;

use super::machine;
use super::pace::Pace;
use super::results::{Results, Run, Skipped};
use super::sites::{EmptyPrograms, Sites, Where};
use super::tracers::{Kind, Kit, Tracer};
use super::workloads::{Launch, Workload};

/// How often a run is repeated if the machine was slow after it, at most.
const MAX_REPEATS: u32 = 1;
/// Longer ones are not: the pace changes in less.
const MAX_REPEATED: Duration = Duration::from_secs(2);

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
                measured.rounds(&tracers, plan.rounds, &sites, results, &mut problems);
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

    fn rounds(
        &self,
        tracers: &[&Tracer],
        rounds: u32,
        sites: &Sites,
        results: &mut Results,
        problems: &mut Vec<String>,
    ) {
        let name = self.workload.name;
        let mut checksum = None;
        for round in 1..=rounds {
            for tracer in rotated(tracers, round as usize) {
                let outcome = self.run(tracer, sites).and_then(|(mut run, of_run)| {
                    let expected = checksum.get_or_insert_with(|| of_run.clone());
                    if *expected != of_run {
                        bail!("it computed {of_run:?}, and {expected:?} before");
                    }
                    run.round = round;
                    Ok(run)
                });
                match outcome {
                    Ok(run) => {
                        let (cost_ns, tracer) = (run.cost_ns, &run.tracer);
                        eprintln!("{name:<12} {tracer:<17} round {round}: {cost_ns:>13.0} ns");
                        results.runs.push(run);
                    }
                    Err(error) => {
                        let problem = format!("{name}, {}, round {round}: {error:#}", tracer.name);
                        eprintln!("FAILED: {problem}");
                        problems.push(problem);
                    }
                }
            }
        }
    }

    /// One program under one tracer, when the machine is as quick as it can be, if it ever is; and its checksum.
    fn run(&self, tracer: &Tracer, sites: &Sites) -> Result<(Run, Option<String>)> {
        for _repeat in 0..MAX_REPEATS {
            let measured = self.run_once(tracer, sites)?;
            let is_short = Duration::from_nanos(measured.0.wall_ns) <= MAX_REPEATED;
            if !measured.0.slow_machine || !is_short || self.quick {
                return Ok(measured);
            }
        }
        self.run_once(tracer, sites)
    }

    fn run_once(&self, tracer: &Tracer, sites: &Sites) -> Result<(Run, Option<String>)> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let folder: &Path = folder.path();
        // Before the program is there, and below when it and the tracer are gone: what a tracer does beside the program slows
        // the machine down as well, and must neither be given time before the program works nor be a reason to repeat the run.
        self.pace.wait()?;
        let prepared = tracer.prepare(self.kit, sites, folder)?;
        let amount = if tracer.costs_next_to_nothing() {
            self.workload.amount_untraced(self.quick)
        } else {
            self.workload.amount(self.quick)
        };
        let mut program = self.workload.start(amount, &prepared.launch, folder)?;
        let attached = tracer.attach(self.kit, sites, &prepared, program.pid(), folder)?;
        let work = program.work()?;
        let output = program.finish()?;
        let seen = tracer.check(attached, &output, work.allocations_at_least, folder)?;
        if seen.disturbed {
            eprintln!("NOTE: somebody has the kernel count runs of programs, which takes time");
        }
        let slow_machine = !self.pace.is_quick()?;
        let run = Run {
            workload: self.workload.name.to_owned(),
            tracer: tracer.name.to_owned(),
            round: 0,
            cost_ns: work.cost_ns,
            units: work.units,
            wall_ns: work.wall_ns,
            cpu_ns: work.cpu_ns,
            allocations: seen.allocations,
            disturbed: seen.disturbed,
            slow_machine,
            memscope: seen.memscope,
        };
        Ok((run, work.checksum))
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
