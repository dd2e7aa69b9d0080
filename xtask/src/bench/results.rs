//! What was measured, as it is stored, and the numbers that are made of it.

use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::tracers::{LIMITED, NONE};

/// Where the committed results are.
pub(super) const FILE: &str = "docs/results/overhead.json";
const SCHEMA: &str = "memscope.overhead";
const VERSION: u32 = 2;
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All that a run of the benchmark measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    schema: String,
    version: u32,
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    /// Whether the programs did less than they usually do here.
    pub(super) quick: bool,
    pub(super) skipped: Vec<Skipped>,
    pub(super) runs: Vec<Run>,
}

/// What is looked at first: another version can have other fields.
#[derive(Deserialize)]
struct Form {
    schema: String,
    version: u32,
}

/// Where it was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) commit: String,
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) processors: u64,
    pub(super) date: String,
    /// How the floor was attached.
    pub(super) floor: String,
    /// Load average at the beginning and at the end.
    pub(super) load: [String; 2],
    /// Programs and what they call their version.
    pub(super) versions: Vec<(String, String)>,
}

/// What was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Skipped {
    pub(super) what: String,
    pub(super) reason: String,
}

/// One program under one tracer, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) workload: String,
    pub(super) tracer: String,
    pub(super) round: u32,
    /// The tracer of another program that worked at the same time, on the same processor; the cost is processor time then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) beside: Option<String>,
    /// Of the workload's unit.
    pub(super) cost_ns: f64,
    /// How many of them were done, by all threads together.
    pub(super) units: u64,
    pub(super) wall_ns: u64,
    pub(super) cpu_ns: u64,
    /// As the tracer says; none where it does not count.
    pub(super) allocations: Option<u64>,
    /// Somebody else had the kernel count runs of programs; only programs that do nothing notice.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) disturbed: bool,
    /// The machine was slower after it than it can be.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) slow_machine: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memscope: Option<MemscopeFigures>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Run {
    /// Processor time of the workload's unit.
    pub(super) fn cpu_ns_per_unit(&self) -> f64 {
        self.cpu_ns as f64 / self.units.max(1) as f64
    }
}

/// What memscope itself took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemscopeFigures {
    pub(super) cpu_ns: u64,
    pub(super) peak_rss_bytes: u64,
    pub(super) lost_events: u64,
    pub(super) recording_bytes: u64,
    /// None where not every event is recorded.
    pub(super) events: Option<u64>,
    pub(super) complete_stacks: u64,
    pub(super) truncated_stacks: u64,
    /// If what it may cost was limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) budget: Option<BudgetFigures>,
}

/// What memscope says of its budget; shares are of the program's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BudgetFigures {
    pub(super) spent_ppm: u64,
    pub(super) observed_ppm: u64,
    pub(super) windows: u64,
    /// Processor time of memscope while it recorded: without its start, which nothing has been earned for.
    pub(super) collector_cpu_ns: u64,
}

/// What tracing with a budget has cost, in shares of the untraced program's processor time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overhead {
    /// What the program took more.
    pub(super) of_program: f64,
    /// What memscope took while it recorded.
    pub(super) of_memscope: f64,
    /// What both are, as memscope says.
    pub(super) told: f64,
}

impl Overhead {
    /// None if the run had no budget.
    fn of(run: &Run, untraced: &Run) -> Option<Self> {
        let budget = run.memscope.as_ref()?.budget?;
        let untraced_ns = untraced.cpu_ns as f64;
        Some(Self {
            of_program: run.cpu_ns as f64 / untraced_ns - 1.0,
            of_memscope: budget.collector_cpu_ns as f64 / untraced_ns,
            told: budget.spent_ppm as f64 / 1e6,
        })
    }

    pub(super) fn together(&self) -> f64 {
        self.of_program + self.of_memscope
    }
}

/// A middle value, and how far the others are from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    /// None of no values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, least, most })
    }
}

impl Results {
    pub(super) fn new(machine: Machine, rounds: u32, quick: bool) -> Self {
        let (skipped, runs) = (Vec::new(), Vec::new());
        Self { schema: SCHEMA.to_owned(), version: VERSION, machine, rounds, quick, skipped, runs }
    }

    pub(super) fn load(path: &Path) -> Result<Self> {
        let bytes = fs::metadata(path).with_context(|| format!("no {}", path.display()))?.len();
        if bytes > MAX_FILE_BYTES {
            bail!("{} has {bytes} bytes; {MAX_FILE_BYTES} is the limit", path.display());
        }
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let damaged = || format!("{} is damaged; restore it", path.display());
        let form: Form = serde_json::from_slice(&text).with_context(damaged)?;
        if (form.schema.as_str(), form.version) != (SCHEMA, VERSION) {
            bail!("{} has another form than {SCHEMA} {VERSION}", path.display());
        }
        serde_json::from_slice(&text).with_context(damaged)
    }

    pub(super) fn store(&self, path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(path, self.to_text()?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// JSON with a line for each run, so that differences can be read.
    fn to_text(&self) -> Result<String> {
        let mut runs = Vec::new();
        for run in &self.runs {
            runs.push(serde_json::to_string(run)?);
        }
        let head = Self { runs: Vec::new(), ..self.clone() };
        let head = serde_json::to_string_pretty(&head)?;
        let head = head.strip_suffix("[]\n}").context("an empty list comes last")?;
        Ok(format!("{head}[\n    {}\n  ]\n}}\n", runs.join(",\n    ")))
    }

    /// Without those of claims that are decided side by side.
    pub(super) fn of<'a>(
        &'a self,
        workload: &'a str,
        tracer: &'a str,
    ) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| {
            run.workload == workload && run.tracer == tracer && run.beside.is_none()
        })
    }

    /// How many times as much processor time one took as the other, of programs that worked side by side.
    pub(super) fn beside(&self, workload: &str, tracer: &str, base: &str) -> Option<Spread> {
        let is_of = |run: &Run, tracer: &str, other: &str| {
            let beside = run.beside.as_deref();
            run.workload == workload && run.tracer == tracer && beside == Some(other)
        };
        let ratios = self.runs.iter().filter(|run| is_of(run, tracer, base)).filter_map(|run| {
            let mut others = self.runs.iter().filter(|other| is_of(other, base, tracer));
            let other = others.find(|other| other.round == run.round)?;
            Some(run.cpu_ns_per_unit() / other.cpu_ns_per_unit())
        });
        Spread::of(ratios)
    }

    pub(super) fn figure(
        &self,
        workload: &str,
        tracer: &str,
        value: impl Fn(&Run) -> f64,
    ) -> Option<Spread> {
        Spread::of(self.of(workload, tracer).map(value))
    }

    /// How many times as much one is as the other, each compared in its own round only.
    pub(super) fn ratio(
        &self,
        workload: &str,
        tracer: &str,
        base: &str,
        value: impl Fn(&Run) -> f64,
    ) -> Option<Spread> {
        let ratios = self.of(workload, tracer).filter_map(|run| {
            let other = self.of(workload, base).find(|other| other.round == run.round)?;
            Some(value(run) / value(other))
        });
        Spread::of(ratios)
    }

    /// How many times as long a program takes as under another tracer.
    pub(super) fn slowdown(&self, workload: &str, tracer: &str, base: &str) -> Option<Spread> {
        self.ratio(workload, tracer, base, |run| run.cost_ns)
    }

    /// Of a program with a budget, which worked beside the untraced one.
    pub(super) fn overhead(
        &self,
        workload: &str,
        value: impl Fn(&Overhead) -> f64,
    ) -> Option<Spread> {
        let overheads = self.of(workload, LIMITED).filter_map(|run| {
            let mut untraced = self.of(workload, NONE);
            Overhead::of(run, untraced.find(|other| other.round == run.round)?)
        });
        Spread::of(overheads.map(|overhead| value(&overhead)))
    }

    /// memscope's own figures in one mode.
    pub(super) fn memscope(
        &self,
        workload: &str,
        tracer: &str,
        value: impl Fn(&MemscopeFigures) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.of(workload, tracer).filter_map(|run| value(run.memscope.as_ref()?)))
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} — {}", self.what, self.reason)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn run(workload: &str, tracer: &str, round: u32, cost_ns: f64) -> Run {
        Run {
            workload: workload.to_owned(),
            tracer: tracer.to_owned(),
            round,
            beside: None,
            cost_ns,
            units: 10,
            wall_ns: 2_000_000,
            cpu_ns: 5 * cost_ns as u64,
            allocations: None,
            disturbed: false,
            slow_machine: false,
            memscope: None,
        }
    }

    pub(crate) fn results(runs: Vec<Run>) -> Results {
        Results { runs, ..Results::new(Machine::default(), 3, false) }
    }

    #[test]
    fn the_median_is_the_middle_and_the_spread_all() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        let of = |median, least, most| Some(Spread { median, least, most });
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(spread(&[3.0]), of(3.0, 3.0, 3.0));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), of(2.0, 1.0, 9.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), of(3.0, 1.0, 9.0));
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let runs = vec![
            run("w", "a", 1, 10.0),
            run("w", "b", 1, 5.0),
            run("w", "a", 2, 100.0),
            run("w", "b", 2, 25.0),
            run("w", "a", 3, 7.0),
            run("other", "b", 3, 1.0),
        ];
        let results = results(runs);
        let expected = Spread { median: 3.0, least: 2.0, most: 4.0 };
        assert_eq!(results.slowdown("w", "a", "b").unwrap(), expected);
        assert_eq!(results.ratio("w", "a", "b", Run::cpu_ns_per_unit).unwrap(), expected);
        let cpu = results.figure("w", "b", Run::cpu_ns_per_unit).unwrap();
        assert_eq!(cpu, Spread { median: 7.5, least: 2.5, most: 12.5 });
        assert_eq!(results.slowdown("w", "a", "c"), None);
    }

    /// Two programs side by side, in one round; the costs of a unit.
    pub(crate) fn both(workload: &str, tracers: [&str; 2], costs_ns: [u64; 2]) -> [Run; 2] {
        let run = |index: usize| Run {
            beside: Some(tracers[1 - index].to_owned()),
            cpu_ns: 10 * costs_ns[index],
            ..run(workload, tracers[index], 1, costs_ns[index] as f64)
        };
        [run(0), run(1)]
    }

    #[test]
    fn programs_side_by_side_are_compared_with_each_other_only() {
        let mut runs = both("w", ["a", "b"], [30, 10]).to_vec();
        runs.extend(both("w", ["a", "c"], [500, 100]));
        runs.extend([run("w", "a", 1, 7.0), run("w", "b", 1, 1.0)]);
        let results = results(runs);
        let of = |median| Some(Spread { median, least: median, most: median });
        assert_eq!(results.beside("w", "a", "b"), of(3.0));
        assert_eq!(results.beside("w", "c", "a"), of(0.2));
        assert_eq!(results.beside("w", "b", "c"), None);
        assert_eq!(results.slowdown("w", "a", "b"), of(7.0));
        assert_eq!(results.slowdown("w", "a", "c"), None);
    }

    pub(crate) fn limited(workload: &str, round: u32, cpu_ns: u64, spent_ppm: u64) -> Run {
        let budget = BudgetFigures {
            spent_ppm,
            observed_ppm: 6_100,
            windows: 21,
            collector_cpu_ns: 1_000_000,
        };
        let memscope = MemscopeFigures {
            cpu_ns: 1,
            peak_rss_bytes: 1,
            lost_events: 0,
            recording_bytes: 1,
            events: None,
            complete_stacks: 1,
            truncated_stacks: 0,
            budget: Some(budget),
        };
        Run { cpu_ns, memscope: Some(memscope), ..run(workload, LIMITED, round, 1.0) }
    }

    #[test]
    fn overhead_is_what_the_program_and_memscope_took_of_the_untraced_programs_time() {
        let untraced = |round| Run { cpu_ns: 100_000_000, ..run("w", NONE, round, 1.0) };
        let runs = vec![
            untraced(1),
            limited("w", 1, 103_000_000, 50_000),
            untraced(2),
            limited("w", 2, 99_000_000, 20_000),
            limited("w", 3, 500_000_000, 50_000),
        ];
        let results = results(runs);
        let together = results.overhead("w", Overhead::together).unwrap();
        assert!((together.most - 0.04).abs() < 1e-9 && together.least.abs() < 1e-9, "{together:?}");
        let apart = results.overhead("w", |overhead| overhead.told - overhead.of_program).unwrap();
        assert!((apart.least - 0.02).abs() < 1e-9 && (apart.most - 0.03).abs() < 1e-9, "{apart:?}");
        assert_eq!(results.overhead("other", Overhead::together), None);
    }

    #[test]
    fn stored_results_are_the_same_when_loaded() {
        let mut results = results(vec![run("w", "a", 1, 1.5), run("w", "b", 1, 2.0)]);
        results.skipped.push(Skipped { what: "x".to_owned(), reason: "y".to_owned() });
        results.runs[0].memscope = Some(MemscopeFigures {
            cpu_ns: 1,
            peak_rss_bytes: 2,
            lost_events: 0,
            recording_bytes: 3,
            events: Some(4),
            complete_stacks: 5,
            truncated_stacks: 6,
            budget: Some(BudgetFigures {
                spent_ppm: 7,
                observed_ppm: 8,
                windows: 9,
                collector_cpu_ns: 10,
            }),
        });
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/overhead.json");
        results.store(&path).unwrap();
        assert_eq!(Results::load(&path).unwrap(), results);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().any(|line| line.starts_with("    {\"workload\":\"w\"")), "{text}");
        results.runs.clear();
        results.store(&path).unwrap();
        assert_eq!(Results::load(&path).unwrap(), results);
    }

    #[test]
    fn results_of_another_form_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("overhead.json");
        assert!(Results::load(&path).is_err());
        let text = results(Vec::new()).to_text().unwrap();
        fs::write(&path, text.replace("\"version\": 2", "\"version\": 1")).unwrap();
        assert!(Results::load(&path).unwrap_err().to_string().contains("another form"));
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(Results::load(&path).unwrap_err().to_string().contains("damaged"));
    }
}
