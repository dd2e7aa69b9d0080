//! The benchmark against other tracers, in small: it measures what it says, and refuses what it cannot measure.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use memscope_tests::memscope_binary;
use serde_json::Value;

use crate::kit::{Finished, Scratch, number, run, skip};

/// `cargo xtask test` says where it is.
fn bench(arguments: &[&str]) -> Option<Finished> {
    let Some(xtask) = std::env::var_os("XTASK").map(PathBuf::from) else {
        skip("the benchmark", "XTASK does not name the program with the tasks");
        return None;
    };
    let mut command = Command::new(xtask);
    Some(run(command.arg("bench").args(arguments).env("MEMSCOPE_BIN", memscope_binary())))
}

#[test]
fn c28_the_benchmark_measures_programs_under_tracers_in_rounds() {
    let scratch = Scratch::new();
    let file = scratch.path("results.json");
    let chosen = ["--quick", "--workload", "pairs", "--tracer", "memscope", "--tracer", "floor"];
    let mut arguments = chosen.to_vec();
    arguments.extend(["--rounds", "2", "--output", file.to_str().unwrap()]);
    let Some(finished) = bench(&arguments) else { return };
    finished.assert_code(0);

    let results: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut costs: HashMap<(String, u64), f64> = HashMap::new();
    for run in results["runs"].as_array().unwrap() {
        let tracer = run["tracer"].as_str().unwrap().to_owned();
        if tracer == "memscope" {
            assert_eq!(number(run, "allocations"), 50_000, "{run}");
            assert_eq!(number(&run["memscope"], "lost_events"), 0);
            assert_eq!(number(&run["memscope"], "events"), 100_000);
            assert!(number(&run["memscope"], "recording_bytes") > 0);
            assert!(number(&run["memscope"], "peak_rss_bytes") > 1 << 20);
        }
        assert!(number(run, "wall_ns") > 0 && number(run, "cpu_ns") > 0, "{run}");
        costs.insert((tracer, number(run, "round")), run["cost_ns"].as_f64().unwrap());
    }
    assert_eq!(costs.len(), 6, "two rounds of three: {costs:?}");
    let ratio = |round, tracer: &str, base: &str| {
        costs[&(tracer.to_owned(), round)] / costs[&(base.to_owned(), round)]
    };
    for round in [1, 2] {
        assert!(ratio(round, "floor", "none") > 2.0, "the empty programs were called: {costs:?}");
        assert!(ratio(round, "memscope", "floor") > 0.5, "{costs:?}");
    }
    // Of two rounds, the median is the mean.
    let shown = f64::midpoint(ratio(1, "floor", "none"), ratio(2, "floor", "none"));
    let row = finished.stdout.lines().find(|line| line.starts_with("| floor")).unwrap();
    let cell: f64 =
        row.split('|').nth(3).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!((cell / shown - 1.0).abs() < 0.02, "{row}, and computed here {shown}");
}

#[test]
fn the_benchmark_refuses_what_it_does_not_know_and_partial_updates() {
    for (arguments, said) in [
        (&["--workload", "no-such"][..], "no workload is named no-such"),
        (&["--tracer", "no-such"], "no tracer is named no-such"),
        (&["--update", "--quick"], "cannot be used with"),
    ] {
        let Some(finished) = bench(arguments) else { return };
        assert_ne!(finished.code, Some(0), "{arguments:?}");
        assert!(finished.stderr.contains(said), "{finished:#?}");
    }
}

#[test]
fn the_benchmark_says_what_it_leaves_out() {
    let missing = ["--quick", "--workload", "pairs", "--tracer", "bytehound"];
    let Some(finished) = bench(&missing) else { return };
    finished.assert_code(0);
    let skipped = finished.stdout.lines().find(|line| line.starts_with("SKIPPED: bytehound"));
    if let Some(line) = skipped {
        assert!(line.contains("libbytehound.so"), "{line}");
    } else {
        assert!(finished.stdout.contains("| bytehound |"), "{}", finished.stdout);
    }
}
