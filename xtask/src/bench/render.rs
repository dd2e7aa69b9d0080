//! The documents that are made of the results: nothing in them is typed by hand.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::claims::{Bound, Verdict, bytes_per_event, verdicts};
use super::results::{BudgetFigures, FILE, MemscopeFigures, Overhead, Results, Run, Spread};
use super::text::METHOD;
use super::tracers::{
    BPFTRACE, CALLER, DHAT, FLOOR, FULL, HEAPTRACK, HEAPTRACK_RAW, LIMITED, MASSIF, MEMCHECK, NONE,
    SAMPLED, TRACERS, Tracer,
};
use super::workloads::{Unit, WORKLOADS, Workload};

pub(super) const DOCUMENT: &str = "docs/overhead.md";
pub(super) const README: &str = "README.md";
const BLOCK_BEGINS: &str =
    "<!-- docs/results/overhead.json: `cargo xtask bench --render` writes this block -->\n";
const BLOCK_ENDS: &str = "<!-- end of the block -->\n";
const README_TRACERS: &[&str] =
    &[FULL, CALLER, SAMPLED, FLOOR, HEAPTRACK, HEAPTRACK_RAW, MASSIF, DHAT, MEMCHECK, BPFTRACE];
const README_WORKLOADS: &[&str] =
    &["pairs", "threads-8", "stl", "python-json", "python-malloc", "sqlite", "redis"];
const NOT_MEASURED: &str = "–";

/// Writes the documents.
pub(super) fn write(root: &Path, results: &Results) -> Result<()> {
    for (path, text) in documents(root, results)? {
        let path = root.join(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The documents that differ from what the committed results give.
pub(crate) fn stale(root: &Path) -> Result<Vec<&'static str>> {
    let results = Results::load(&root.join(FILE))?;
    let mut stale = Vec::new();
    for (path, text) in documents(root, &results)? {
        if fs::read_to_string(root.join(path)).unwrap_or_default() != text {
            stale.push(path);
        }
    }
    Ok(stale)
}

fn documents(root: &Path, results: &Results) -> Result<[(&'static str, String); 2]> {
    let readme = fs::read_to_string(root.join(README)).context("cannot read the README")?;
    Ok([(DOCUMENT, document(results)), (README, with_block(&readme, results)?)])
}

fn document(results: &Results) -> String {
    let mut text = METHOD.to_owned();
    text += &machine(results);
    text += "\n## What memscope is to show\n\n";
    text += "Each ratio is made within rounds; shown are the median and, in brackets, the least and the most. \
             Where empty programs in memscope's place miss the limit as well, no tracer by probes can hold it on this machine, \
             whatever it does in them.\n\n";
    text += &claims(&verdicts(results));
    text += "\n## Measured\n";
    for workload in measured_workloads(results) {
        text += &format!("\n### {}\n\n{}.\n\n", workload.name, workload.title);
        text += &density(results, workload);
        text += &workload_table(results, workload);
    }
    text += "\n## What memscope itself took\n\n";
    text += &own_table(results);
    text += &budget_section(results);
    if !results.skipped.is_empty() {
        text += "\n## Not measured\n\n";
        for skipped in &results.skipped {
            text += &format!("- {skipped}\n");
        }
    }
    text
}

/// What a terminal shows after measuring.
pub(super) fn summary(results: &Results) -> String {
    let mut text = String::new();
    for workload in measured_workloads(results) {
        let (title, density) = (workload.title, density(results, workload));
        text += &format!("\n{title}\n\n{density}{}", workload_table(results, workload));
    }
    let mut verdicts = verdicts(results);
    verdicts.retain(|verdict| verdict.measured.is_some());
    text + "\n" + &claims(&verdicts) + "\n" + &own_table(results) + &budget_section(results)
}

fn measured_workloads(results: &Results) -> impl Iterator<Item = &'static Workload> {
    WORKLOADS.iter().filter(|workload| results.runs.iter().any(|run| run.workload == workload.name))
}

fn with_block(readme: &str, results: &Results) -> Result<String> {
    let (before, rest) = readme
        .split_once(BLOCK_BEGINS)
        .with_context(|| format!("{README} lacks the line {BLOCK_BEGINS}"))?;
    let (_old, after) = rest
        .split_once(BLOCK_ENDS)
        .with_context(|| format!("{README} lacks the line {BLOCK_ENDS}"))?;
    Ok(format!("{before}{BLOCK_BEGINS}\n{}\n{BLOCK_ENDS}{after}", block(results)))
}

fn block(results: &Results) -> String {
    let workloads: Vec<_> =
        README_WORKLOADS.iter().filter_map(|name| Workload::named(name)).collect();
    let mut head = vec!["times as long as untraced".to_owned()];
    head.extend(workloads.iter().map(|workload| workload.name.to_owned()));
    let mut text = table_head(&head);
    for tracer in README_TRACERS.iter().filter_map(|name| Tracer::named(name)) {
        let mut cells = vec![tracer.title.to_owned()];
        cells.extend(workloads.iter().map(|workload| {
            let slowdown = results.slowdown(workload.name, tracer.name, NONE);
            slowdown.map_or(NOT_MEASURED.to_owned(), |slowdown| times(slowdown.median))
        }));
        text += &row(&cells);
    }
    let machine = &results.machine;
    text + &format!(
        "\n`pairs` and `threads-8` do nothing but malloc and free, in one thread and in 8. \
         Medians of {} rounds on {} processors ({}), Linux {}, {}, commit {}.\n",
        results.rounds,
        machine.processors,
        machine.processor,
        machine.kernel,
        machine.date,
        machine.commit
    )
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let quick = if results.quick { ", with less work than usual (`--quick`)" } else { "" };
    let disturbed = results.runs.iter().filter(|run| run.disturbed).count();
    let is_timed = |run: &&Run| {
        let workload = Workload::named(&run.workload);
        run.beside.is_none() && !workload.is_some_and(Workload::is_beside_untraced)
    };
    let slow = results.runs.iter().filter(|run| run.slow_machine).count();
    let slow = format!("{slow} of {}", results.runs.iter().filter(is_timed).count());
    let facts = [
        ("commit", machine.commit.clone()),
        ("date", machine.date.clone()),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("processor", machine.processor.clone()),
        ("processors", machine.processors.to_string()),
        ("load average before and after", machine.load.join(", ")),
        ("rounds", format!("{}{quick}", results.rounds)),
        ("floor", format!("by {}", machine.floor)),
        ("runs while others had the kernel count runs of programs", disturbed.to_string()),
        ("runs after which the machine was slow", slow),
    ];
    let versions = machine.versions.iter().map(|(name, said)| (name.as_str(), said.clone()));
    let mut text = "\n## Machine\n\n".to_owned();
    text += &table_head(&["".to_owned(), "".to_owned()]);
    for (name, value) in facts.into_iter().chain(versions) {
        text += &row(&[name.to_owned(), value]);
    }
    text
}

fn claims(verdicts: &[Verdict]) -> String {
    let head = [
        "memscope …",
        "on",
        "compared",
        "measured",
        "one after the other, by processor time",
        "empty programs in its place",
        "limit",
        "holds",
    ];
    let mut text = table_head(&head.map(str::to_owned));
    let ratio = |value: f64| if value == 0.0 { "0".to_owned() } else { format!("{value:.2}") };
    for verdict in verdicts {
        let limit = match verdict.bound {
            Bound::AtMost(limit) => format!("≤ {limit}"),
            Bound::AtLeast(limit) => format!("≥ {limit}"),
        };
        let holds = match verdict.holds() {
            Some(true) => "yes",
            Some(false) if verdict.is_below_empty_programs() => "**no**, nor would these",
            Some(false) => "**no**",
            None => "not measured",
        };
        text += &row(&[
            verdict.claim.to_owned(),
            verdict.workload.clone(),
            verdict.what.clone(),
            shown(verdict.measured, ratio),
            shown(verdict.by_processor_time, ratio),
            shown(verdict.of_empty_programs, ratio),
            limit,
            holds.to_owned(),
        ]);
    }
    text
}

/// How often a program allocates, untraced, by memscope's count of a run with as much work.
fn density(results: &Results, workload: &Workload) -> String {
    let allocations = results.figure(workload.name, FULL, |run| {
        run.allocations.map_or(f64::NAN, |allocations| allocations as f64)
    });
    let wall = results.figure(workload.name, NONE, |run| run.wall_ns as f64);
    match (workload.unit, allocations, wall) {
        (Unit::Pair | Unit::Call, _, _) | (_, None, _) | (_, _, None) => String::new(),
        (_, Some(allocations), Some(wall)) => {
            let (allocations, between) = (allocations.median, wall.median / allocations.median);
            format!("{allocations:.0} allocations, untraced one each {between:.0} ns.\n\n")
        }
    }
}

fn workload_table(results: &Results, workload: &Workload) -> String {
    let (unit, shown_cost): (_, fn(f64) -> String) = match workload.unit {
        Unit::Pair => ("ns per pair", |ns| format!("{ns:.0}")),
        Unit::Call => ("ns per call", |ns| format!("{ns:.0}")),
        Unit::Run => ("ms", |ns| format!("{:.1}", ns / 1e6)),
        Unit::Request => ("µs per request", |ns| format!("{:.1}", ns / 1e3)),
    };
    // Where two programs share a processor, time says nothing.
    let is_timed = !workload.is_beside_untraced();
    let is_request = is_timed && workload.unit == Unit::Request;
    let mut head = vec!["tracer".to_owned()];
    if is_timed {
        head.extend([unit.to_owned(), "times as long".to_owned()]);
    }
    if is_request {
        head.push("requests per second".to_owned());
    }
    head.extend([format!("processor time, {unit}"), "times as much".to_owned()]);
    let mut text = table_head(&head);
    for tracer in TRACERS {
        let figure = |value: fn(&Run) -> f64| results.figure(workload.name, tracer.name, value);
        let ratio = |value: fn(&Run) -> f64| {
            shown(results.ratio(workload.name, tracer.name, NONE, value), times)
        };
        let (cost, cpu): (fn(&Run) -> f64, _) = (|run| run.cost_ns, Run::cpu_ns_per_unit);
        let Some(spread) = figure(cost) else { continue };
        let mut cells = vec![tracer.title.to_owned()];
        if is_timed {
            cells.extend([shown(Some(spread), shown_cost), ratio(cost)]);
        }
        if is_request {
            cells.push(format!("{:.0}", 1e9 / spread.median));
        }
        cells.extend([shown(figure(cpu), shown_cost), ratio(cpu)]);
        text += &row(&cells);
    }
    text
}

fn own_table(results: &Results) -> String {
    let head = [
        "workload",
        "memscope",
        "its processor time, ms",
        "its memory at most, MiB",
        "bytes per event",
        "lost",
        "incomplete stacks",
    ];
    let mut text = table_head(&head.map(str::to_owned));
    for workload in WORKLOADS {
        for mode in [FULL, CALLER, SAMPLED, LIMITED] {
            let own = |value: fn(&MemscopeFigures) -> f64| {
                results.memscope(workload.name, mode, |figures| Some(value(figures)))
            };
            let Some(cpu) = own(|figures| figures.cpu_ns as f64 / 1e6) else { continue };
            let truncated = own(|figures| figures.truncated_stacks as f64);
            // Where only callers are recorded, no stack is meant to be complete.
            let truncated = truncated.filter(|_| mode != CALLER);
            let incomplete = shown(truncated, |stacks| format!("{stacks:.0}"));
            let cells = [
                workload.name.to_owned(),
                mode.to_owned(),
                shown(Some(cpu), |ms| format!("{ms:.0}")),
                shown(own(|figures| figures.peak_rss_bytes as f64), |bytes| {
                    format!("{:.0}", bytes / f64::from(1 << 20))
                }),
                shown(bytes_per_event(results, workload.name, mode), |bytes| format!("{bytes:.1}")),
                shown(own(|figures| figures.lost_events as f64), |lost| format!("{lost:.0}")),
                incomplete,
            ];
            text += &row(&cells);
        }
    }
    text
}

/// What memscope says of its budget, beside what was measured; nothing if no program had one.
fn budget_section(results: &Results) -> String {
    let head = [
        "workload",
        "the program, of its time untraced",
        "memscope, of the same",
        "together",
        "its account: spent, of 0.05",
        "observed, of 1",
        "windows",
    ];
    let mut rows = String::new();
    for workload in WORKLOADS {
        let told = |value: fn(&BudgetFigures) -> u64| {
            results.memscope(workload.name, LIMITED, |own| Some(value(own.budget.as_ref()?) as f64))
        };
        let Some(spent) = told(|budget| budget.spent_ppm) else { continue };
        let share = |value: fn(&Overhead) -> f64| {
            shown(results.overhead(workload.name, value), |share| format!("{share:.3}"))
        };
        rows += &row(&[
            workload.name.to_owned(),
            share(|overhead| overhead.of_program),
            share(|overhead| overhead.of_memscope),
            share(Overhead::together),
            shown(Some(spent), |ppm| format!("{:.3}", ppm / 1e6)),
            shown(told(|budget| budget.observed_ppm), |ppm| format!("{:.4}", ppm / 1e6)),
            shown(told(|budget| budget.windows), |windows| format!("{windows:.0}")),
        ]);
    }
    if rows.is_empty() {
        return rows;
    }
    format!("\n## With a budget\n\n{}{rows}", table_head(&head.map(str::to_owned)))
}

/// `12.3 (11.8–13.0)`, or one number where there is one.
fn shown(spread: Option<Spread>, value: impl Fn(f64) -> String) -> String {
    let Some(spread) = spread else { return NOT_MEASURED.to_owned() };
    let (median, least, most) = (value(spread.median), value(spread.least), value(spread.most));
    if least == most { median } else { format!("{median} ({least}–{most})") }
}

/// With the digits that it deserves.
fn times(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 10.0 => format!("{ratio:.2}"),
        ratio if ratio < 100.0 => format!("{ratio:.1}"),
        ratio => format!("{ratio:.0}"),
    }
}

fn table_head(cells: &[String]) -> String {
    let mut rule = vec!["---".to_owned()];
    rule.resize(cells.len(), "---:".to_owned());
    row(cells) + &row(&rule)
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{limited, results, run};
    use super::super::tracers::BARE_TRAP;
    use super::*;

    fn measured() -> Results {
        let mut runs = Vec::new();
        for (round, factor) in [(1, 1.0), (2, 1.1), (3, 0.9)] {
            runs.push(run("pairs", NONE, round, 20.0 * factor));
            runs.push(run("pairs", FULL, round, 2000.0 * factor));
            runs.push(run("pairs", BARE_TRAP, round, 1000.0));
            runs.push(run("redis", FULL, round, 20_000.0));
        }
        runs[1].memscope = Some(MemscopeFigures {
            cpu_ns: 30_000_000,
            peak_rss_bytes: 50 << 20,
            lost_events: 0,
            recording_bytes: 400,
            events: Some(100),
            complete_stacks: 100,
            truncated_stacks: 0,
            budget: None,
        });
        results(runs)
    }

    #[test]
    fn documents_have_what_was_measured_and_nothing_else() {
        let text = document(&measured());
        for line in [
            "| **memscope**, every event with its stack | 2000 (1800–2200) | 100 | 1000 (900–1100) | 100 |",
            "| none | 20 (18–22) | 1.00 | 10 (9–11) | 1.00 |",
            "| bare trap: the same, without the returns | 1000 | 50.0 (45.5–55.6) | 500 | 50.0 (45.5–55.6) |",
            "| **memscope**, every event with its stack | 20.0 | – | 50000 | 10.0 | – |",
            "| pairs | memscope | 30 | 50 | 4.0 | 0 | 0 |",
            "| within 1.25 × of DHAT on the tight loop | pairs | memscope / dhat, side by side | – | – | – | ≤ 1.25 | not measured |",
            "| records an event in at most 6 bytes | all 1; most: pairs | bytes | 4.00 | – | – | ≤ 6 | yes |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.replace("--max-overhead 5%", "").contains('%'), "{text}");
    }

    #[test]
    fn a_budget_has_a_section_if_one_was_measured() {
        assert!(!document(&measured()).contains("## With a budget"));
        let untraced = Run { cpu_ns: 100_000_000, ..run("redis-long", NONE, 1, 1.0) };
        let runs = vec![untraced, limited("redis-long", 1, 103_000_000, 50_400)];
        let text = document(&results(runs));
        for line in [
            "| redis-long | 0.030 | 0.010 | 0.040 | 0.050 | 0.0061 | 21 |",
            "| `--max-overhead 5%` holds, give or take 2 points | redis-long | program and memscope / none | 1.04 | – | – | ≤ 1.07 | yes |",
            "| `--max-overhead 5%` says what it has cost, give or take 2 points | redis-long | told and measured, apart | 0.01 | – | – | ≤ 0.02 | yes |",
            "| none | 10000.0 | 1.00 |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_readmes_block_is_replaced_and_its_surroundings_kept() {
        let readme = format!("before\n{BLOCK_BEGINS}old\n{BLOCK_ENDS}after\n");
        let text = with_block(&readme, &measured()).unwrap();
        assert!(text.starts_with("before\n") && text.ends_with("after\n") && !text.contains("old"));
        assert!(text.contains("| **memscope**, every event with its stack | 100 | – |"), "{text}");
        assert_eq!(with_block(&text, &measured()).unwrap(), text);
        assert!(with_block("no block", &measured()).is_err());
    }

    #[test]
    fn the_committed_documents_are_those_of_the_committed_results() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(stale(&root).unwrap(), [""; 0], "run `cargo xtask bench --render`");
    }
}
