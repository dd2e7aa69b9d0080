//! Page faults: what made resident memory grow, from where, against a program that knows it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use memscope_tests::{Figures, Variant, programs};
use serde_json::Value;

use crate::kit::{Scratch, memscope, number, run};

/// The program's only growth without page faults.
const POPULATED: &str = "grow_populated";
/// No function may be off by more than one part in so many.
const EXACTNESS: u64 = 100;

/// What the program says of its functions, by name.
fn known_growth(figures: &Figures) -> BTreeMap<String, u64> {
    let rows = figures.rows("grow");
    rows.iter().map(|row| (row[0].to_owned(), row[1].parse().unwrap())).collect()
}

/// What the recording says of them: each chain belongs to the innermost of them.
fn recorded_growth(report: &Value) -> BTreeMap<String, u64> {
    let mut growth = BTreeMap::new();
    for row in report["rows"].as_array().unwrap() {
        let frames = row["frames"].as_array().unwrap();
        let name = frames
            .iter()
            .filter_map(|frame| frame["function"].as_str())
            .find(|name| name.starts_with("grow_"));
        if let Some(name) = name {
            *growth.entry(name.to_owned()).or_default() += number(row, "resident_bytes");
        }
    }
    growth
}

fn assert_close(what: &str, found: u64, expected: u64) {
    let off = found.abs_diff(expected);
    eprintln!("{what}: {found} bytes of {expected}");
    assert!(off * EXACTNESS <= expected, "{what}: {found} instead of {expected} bytes");
}

/// Every function's growth is found at its call chain, and all together is what is resident.
fn assert_growth(figures: &Figures, report: &Value) {
    let mut known = known_growth(figures);
    let populated = known.remove(POPULATED).unwrap();
    let recorded = recorded_growth(report);
    assert_eq!(known.len(), 10);
    for (function, bytes) in &known {
        assert_close(function, recorded.get(function).copied().unwrap_or(0), *bytes);
    }
    assert!(!recorded.contains_key(POPULATED), "it had no page fault");
    assert_close(POPULATED, number(report, "elsewhere_bytes"), populated);
    let shared: u64 = number(report, "shared_bytes");
    assert_eq!(shared, known["grow_shared"], "shared memory is told apart");
    assert!(number(report, "gone_bytes") >= known["grow_and_shrink"]);
}

#[test]
fn growth_is_found_at_the_functions_that_cause_it() {
    let program = programs::build("pages.c", Variant::Default);
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(&["--pages", "--strict"], program, &[]));
    finished.assert_code(0);
    let figures = Figures::parse(&finished.stdout);
    let report = scratch.report_json("pages");
    assert_growth(&figures, &report);
    let net = number(&report, "resident_bytes") + number(&report, "elsewhere_bytes")
        - number(&report, "gone_bytes");
    assert_close("resident at the end", net, figures.number("resident"));

    let export = scratch.export();
    export.assert_complete();
    assert_eq!(export.0["capture"]["events"], "pages");
    assert_eq!(export.total("allocations"), 0);
    assert!(export.list("sites").is_empty());
    let pages = &export.0["pages"];
    assert_eq!(number(pages, "faults"), number(&report, "faults"));
    assert_eq!(number(&pages["resident"], "bytes"), number(&report, "resident_bytes"));
    let stacks = &export.0["stacks"];
    assert!(
        number(stacks, "complete") * 1000 >= number(pages, "faults") * 999,
        "call chains from any instruction are complete: {stacks}"
    );
    assert!(finished.stderr.contains("allocations were not observed"), "{}", finished.stderr);
    assert_eq!(scratch.verify(), Some(0));
}

#[test]
fn a_running_process_is_observed_from_the_attach_on() {
    let program = programs::build("pages.c", Variant::Default);
    let mut child = Command::new(program)
        .arg("wait")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&["--pages"], &[child.id()]);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    memscope.finish().assert_code(0);
    let figures = Figures::parse(&String::from_utf8(output.stdout).unwrap());
    assert_growth(&figures, &scratch.report_json("pages"));
    scratch.export().assert_complete();
}

#[test]
fn what_finds_no_room_is_counted_and_its_growth_is_not_lost() {
    let program = programs::build("pages.c", Variant::Default);
    let scratch = Scratch::new();
    let options = ["--pages", "--strict", "--ring-buffer", "4KiB"];
    let finished = run(&mut scratch.trace_program(&options, program, &[]));
    finished.assert_code(3);
    let export = scratch.export();
    let lost = number(&export.0["loss"]["by_cause"], "ring_full_page_fault");
    assert!(lost > 0, "{}", export.0["loss"]);
    let report = scratch.report_json("pages");
    let known = known_growth(&Figures::parse(&finished.stdout));
    let grown = number(&report, "resident_bytes") + number(&report, "elsewhere_bytes");
    assert_close("with what was lost", grown, known.values().sum());
}

/// The least that a figure of a program was in three runs, and what it was traced.
fn least(figure: &str, program: &Path, argument: &str, options: Option<&[&str]>) -> f64 {
    let scratch = Scratch::new();
    let once = || {
        let finished = match options {
            None => run(Command::new(program).arg(argument)),
            Some(options) => run(&mut scratch.trace_program(options, program, &[argument])),
        };
        Figures::parse(&finished.assert_code(0).stdout).float(figure)
    };
    (0..3).map(|_| once()).fold(f64::INFINITY, f64::min)
}

#[test]
fn allocations_that_touch_no_new_page_cost_nothing() {
    let pairs = programs::build("pairs.c", Variant::Default);
    let faults = programs::build("pages.c", Variant::Default);
    let compare = |figure, program: &Path, argument| {
        let untraced = least(figure, program, argument, None);
        let pages = least(figure, program, argument, Some(&["--pages"]));
        let full = least(figure, program, argument, Some(&[]));
        eprintln!(
            "{} {argument}: {figure} {untraced:.0} untraced, {pages:.0} with --pages, {full:.0} with all allocations",
            program.display()
        );
        (pages / untraced, full / untraced)
    };
    let (pages, full) = compare("elapsed_ns", &pairs, "300000");
    assert!(pages * 10.0 < full, "{pages} times as long with --pages, {full} times with all");
    let (pages, _) = compare("elapsed_ns", &faults, "100");
    assert!(pages < 5.0, "a page fault takes {pages} times as long");
}

/// A child has memory of its own, and an image begins with none.
#[test]
fn growth_is_that_of_the_image_that_grows() {
    let program = programs::build("pages.c", Variant::Default);
    let script = "import os, sys
if os.fork() == 0:
    memory = bytearray(64 << 20)
    os._exit(0)
os.wait()
os.execv(sys.argv[1], sys.argv[1:])";
    let scratch = Scratch::new();
    let program = program.to_str().unwrap();
    let arguments = ["-c", script, program];
    let finished = run(&mut scratch.trace_program(&["--pages"], "python3", &arguments));
    finished.assert_code(0);
    let figures = Figures::parse(&finished.stdout);
    let report = scratch.report_json("pages");
    let known = known_growth(&figures);
    let recorded = recorded_growth(&report);
    for (function, bytes) in known.iter().filter(|(function, _)| *function != POPULATED) {
        assert_close(function, recorded[function], *bytes);
    }
    let export = scratch.export();
    let by = |is_child: bool| -> u64 {
        let processes = export.list("processes").iter();
        let meant = processes.filter(|process| {
            process["parent"].is_null() != is_child && process["comm"] == "python3"
        });
        let ids: Vec<u64> = meant.map(|process| number(process, "process")).collect();
        let rows = report["rows"].as_array().unwrap().iter();
        rows.filter(|row| ids.contains(&number(row, "process")))
            .map(|row| number(row, "resident_bytes"))
            .sum()
    };
    let (parent, child) = (by(false), by(true));
    eprintln!("python3: {parent} bytes, its child: {child} bytes");
    assert!((1 << 20..64 << 20).contains(&parent), "the child's memory is not its parent's");
    assert!((64 << 20..80 << 20).contains(&child), "nor the parent's its child's");
}

#[test]
fn allocations_are_no_page_faults() {
    let refused = run(memscope().args(["trace", "--pages", "--sample", "1KiB", "--pid", "1"]));
    refused.assert_code(2);
    assert!(refused.stderr.contains("--pages"), "{}", refused.stderr);

    let program = programs::build("pairs.c", Variant::Default);
    let scratch = Scratch::new();
    run(&mut scratch.trace_program(&[], program, &["1000"])).assert_code(0);
    assert!(scratch.report("pages").stdout.contains("Page faults were not observed"));
    let export = scratch.export();
    assert_eq!(export.0["capture"]["events"], "allocations");
    assert!(export.0["pages"].is_null());
}
