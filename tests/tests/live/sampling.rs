//! Sampling: what is estimated is within its bounds, what is counted is exact, and no block is thought to live that was
//! freed.

use memscope_tests::{Figures, Variant, programs};
use serde_json::Value;

use crate::contract::assert_figures;
use crate::kit::{Export, Scratch, number, run};

/// Bytes between two samples in the runs whose estimates are judged: some thousand samples each.
const INTERVAL: &str = "4KiB";
/// Each with a seed of its own. The bounds are such that a figure of all 20 sites is within in 95 of 100 runs.
const RUNS: u32 = 20;
/// Of so many runs, no more than these may have a site that is not: one time in 3,000 there would be more by chance.
const MOST_OUTSIDE: usize = 5;

/// What the program says of one of its functions.
#[derive(Debug)]
struct Truth {
    function: String,
    allocations: u64,
    bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
}

fn truths(figures: &Figures) -> Vec<Truth> {
    let rows = figures.rows("site");
    let mut truths: Vec<Truth> = rows
        .iter()
        .map(|row| Truth {
            function: row[0].to_string(),
            allocations: row[1].parse().unwrap(),
            bytes: row[2].parse().unwrap(),
            live_blocks: row[3].parse().unwrap(),
            live_bytes: row[4].parse().unwrap(),
        })
        .collect();
    truths.sort_by_key(|truth| std::cmp::Reverse(truth.bytes));
    truths
}

fn site_of<'a>(export: &'a Export, function: &str) -> Option<&'a Value> {
    export.list("sites").iter().find(|site| site["frames"][0]["function"] == function)
}

/// Whether a figure lies between the bounds that the export gives for it.
fn is_within(site: &Value, key: &str, truth: u64) -> bool {
    let bounds = &site["estimate"][key];
    (bounds["low"].as_f64().unwrap()..=bounds["high"].as_f64().unwrap()).contains(&(truth as f64))
}

/// What the bounds are given for.
const FIGURES: [&str; 4] = ["allocations", "allocated_bytes", "live_blocks", "live_bytes"];

/// One run; for each figure, those of the top 20 sites of which it is outside its bounds.
fn outside(seed: u32) -> [Vec<String>; 4] {
    let program = programs::build("sites.c", Variant::Default);
    let scratch = Scratch::new();
    let seed = seed.to_string();
    let options = ["--strict", "--sample", INTERVAL, "--seed", &seed];
    let traced = run(&mut scratch.trace_program(&options, program, &["3000", &seed]));
    traced.assert_code(0);
    let export = scratch.export();
    let figures = Figures::parse(&traced.stdout);
    assert_eq!(export.0["capture"]["mode"], "sampled");
    assert_eq!(number(&export.0["exact"], "calls"), figures.number("allocations"));
    assert_eq!(number(&export.0["exact"], "bytes"), figures.number("allocated_bytes"));
    let mut outside = [const { Vec::new() }; 4];
    for truth in truths(&figures).iter().take(20) {
        let site = site_of(&export, &truth.function).expect("so large a site has samples");
        let values = [truth.allocations, truth.bytes, truth.live_blocks, truth.live_bytes];
        for (index, value) in values.into_iter().enumerate() {
            if !is_within(site, FIGURES[index], value) {
                outside[index].push(format!("{value}: {} of {truth:?}", site["estimate"]));
            }
        }
    }
    outside
}

#[test]
fn c33_estimates_of_the_top_sites_are_within_their_bounds() {
    let runs: Vec<[Vec<String>; 4]> = (1..=RUNS).map(outside).collect();
    for (index, figure) in FIGURES.iter().enumerate() {
        let failed: Vec<_> = runs.iter().filter(|run| !run[index].is_empty()).collect();
        let within = runs.len() - failed.len();
        eprintln!("{figure}: all top 20 sites within their bounds in {within} of {RUNS} runs");
        assert!(failed.len() <= MOST_OUTSIDE, "{figure}: {failed:#?}");
    }
}

/// Every byte is drawn, and so is every block: what is left is the sampling itself.
#[test]
fn an_interval_of_a_byte_records_every_block() {
    let program = programs::build("mix.c", Variant::Default);
    let scratch = Scratch::new();
    let options = ["--strict", "--sample", "1"];
    let traced = run(&mut scratch.trace_program(&options, program, &["1", "20000"]));
    traced.assert_code(0);
    let export = scratch.export();
    let figures = Figures::parse(&traced.stdout);
    let exact = &export.0["exact"];
    let asked = figures.number("allocations") + figures.number("failed_allocations");
    let got = number(exact, "calls");
    // A block of no bytes is drawn in 63 of 100 cases, as one of one byte.
    assert!(asked >= figures.number("allocations") && got >= asked, "{exact}");
    for key in ["allocations", "frees", "live_blocks"] {
        let (estimated, known) = (export.total(key), figures.number(key));
        let deviation = estimated.abs_diff(known);
        assert!(deviation <= known / 100 + 20, "{key}: {estimated}, and not {known}");
    }
}

/// What is sampled of blocks that are all freed is freed, whoever frees them.
#[test]
fn x6_nothing_that_was_freed_is_thought_to_live() {
    for (program, arguments) in
        [("pairs.c", ["200000", "64", "4"]), ("server.c", ["4", "100", "0"])]
    {
        let program_path = programs::build(program, Variant::Default);
        let scratch = Scratch::new();
        let mut arguments = arguments.to_vec();
        if program == "server.c" {
            arguments.push("20000");
        }
        let options = ["--strict", "--sample", "1KiB"];
        let traced = run(&mut scratch.trace_program(&options, program_path, &arguments));
        traced.assert_code(0);
        let export = scratch.export();
        let figures = Figures::parse(&traced.stdout);
        if figures.number("live_blocks") == 0 {
            // The C library keeps a block for each thread.
            assert!(export.total("live_blocks") <= 64, "{}", export.0["totals"]);
        }
        assert!(export.total("allocations") > 0);
        assert_eq!(
            export.total("unknown_frees"),
            0,
            "frees of blocks that were not drawn are dropped"
        );
        assert_eq!(export.total("unseen_ends"), 0);
    }
}

#[test]
fn full_mode_says_that_it_is_no_sample() {
    let program = programs::build("sites.c", Variant::Default);
    let scratch = Scratch::new();
    let traced = run(&mut scratch.trace_program(&["--strict"], program, &["50"]));
    traced.assert_code(0);
    let export = scratch.export();
    assert_figures(&export, &Figures::parse(&traced.stdout));
    assert_eq!(export.0["capture"]["mode"], "full");
    assert_eq!(export.0["exact"], Value::Null);
}

/// Threads that come one after the other have the same stack, and once all drew the same numbers; and what is not drawn
/// was allocated all the same when it is asked what is temporary.
#[test]
fn short_threads_and_temporary_blocks_are_estimated_without_bias() {
    let program = programs::build("short.c", Variant::Default);
    for (rounds, threads) in [("20000", "20"), ("10", "5000")] {
        let scratch = Scratch::new();
        let finished =
            run(&mut scratch.trace_program(&["--sample", "4KiB"], &program, &[rounds, threads]));
        finished.assert_code(0);
        let rounds = Figures::parse(&finished.stdout).number("rounds");
        let export = scratch.export();
        for (function, blocks, temporary) in [("first", rounds, 0), ("second", rounds, rounds)] {
            let site = site_of(&export, function).unwrap();
            let (found, found_temporary) =
                (number(site, "allocations"), number(site, "temporary_allocations"));
            // Some hundred samples: a tenth is two standard deviations and more; a fifth is wrong.
            assert!(found.abs_diff(blocks) * 5 < blocks, "{found} of {blocks} of {function}");
            let expected = if temporary == 0 { 0 } else { found };
            assert_eq!(found_temporary, expected, "{function} of {threads} threads");
        }
    }
}
