//! Loss: none by default at a rate no program reaches, and told everywhere where a tiny ring loses.

use memscope_tests::{Figures, Variant, programs};
use serde_json::Value;

use crate::contract::assert_figures;
use crate::kit::{Scratch, memscope, number, run};

/// The smallest there is.
const TINY: &str = "4KiB";

#[test]
fn c11_a_million_pairs_in_a_tight_loop_lose_nothing() {
    let program = programs::build("pairs.c", Variant::Default);
    let untraced = run(std::process::Command::new(&program).arg("1000000"));
    let scratch = Scratch::new();
    let traced = run(&mut scratch.trace_program(&["--strict"], &program, &["1000000"]));
    traced.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let figures = Figures::parse(&traced.stdout);
    assert_figures(&export, &figures);
    assert_eq!(export.total("allocations"), 1_000_000);
    eprintln!(
        "ns per malloc and free: {:.0} traced, {:.0} untraced",
        figures.float("ns_per_pair"),
        Figures::parse(&untraced.stdout).float("ns_per_pair")
    );
}

/// As fast as threads can, on every CPU.
#[test]
fn threads_in_a_tight_loop_lose_nothing_and_everything_attempted_is_recorded() {
    let program = programs::build("pairs.c", Variant::Default);
    for (threads, count) in [(2, 500_000), (8, 150_000)] {
        let scratch = Scratch::new();
        let arguments = [&count.to_string(), "64", &threads.to_string()];
        run(&mut scratch.trace_program(&["--strict"], &program, &arguments)).assert_code(0);
        // Not with a million blocks.
        let export =
            run(memscope().arg("export").arg(scratch.recording()).args(["--format", "json"]));
        let export: Value = serde_json::from_str(&export.assert_code(0).stdout).unwrap();
        let (counters, loss) = (&export["counters"], &export["loss"]);
        let (attempted, recorded) = (number(counters, "attempted"), number(counters, "recorded"));
        assert_eq!(number(loss, "lost_events"), 0, "{threads} threads: {loss}");
        assert_eq!(attempted, recorded, "{threads} threads");
        assert!(attempted >= 2 * threads * count, "{threads} threads: {attempted}");
        let allocations = number(&export["totals"], "allocations");
        // The C library allocates a block for each thread.
        assert_eq!(allocations, threads * count + threads, "{threads} threads");
        eprintln!("{threads} threads: {attempted} attempted, all recorded");
    }
}

#[test]
fn c13_eight_threads_that_free_all_leave_nothing_live() {
    let program = programs::build("pairs.c", Variant::Default);
    let scratch = Scratch::new();
    let traced = run(&mut scratch.trace_program(&[], program, &["50000", "64", "8"]));
    traced.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    assert_figures(&export, &Figures::parse(&traced.stdout));
    let left =
        export.blocks().into_iter().filter(|block| block.freed_ns.is_none() && block.size == 64);
    assert_eq!(left.count(), 0, "all that lives is the C library's own");
}

#[test]
fn c11_a_tiny_ring_loses_events_and_says_so_everywhere() {
    let program = programs::build("pairs.c", Variant::Default);
    let scratch = Scratch::new();
    let options = ["--strict", "--ring-buffer", TINY];
    let finished = run(&mut scratch.trace_program(&options, &program, &["100000", "64", "8"]));
    finished.assert_code(3);

    // The export's laws include attempted = recorded + lost.
    let export = scratch.export();
    let lost = export.lost();
    assert!(lost > 0);
    assert!(!export.is_complete());
    let by_cause = &export.0["loss"]["by_cause"];
    assert!(number(by_cause, "ring_full_allocation") > 0, "{by_cause}");
    assert!(number(by_cause, "ring_full_free") > 0, "{by_cause}");
    let calls = 2 * 8 * 100_000;
    let attempted = number(&export.0["counters"], "attempted");
    assert!(attempted >= calls, "each of {calls} calls is an attempted event: {attempted}");
    eprintln!("{TINY} ring: {lost} of {attempted} events lost");

    // Bounds are given, and true: no block of the program is live at the end.
    let totals = &export.0["totals"];
    let live = 8;
    assert!(number(totals, "live_blocks_at_least") <= live, "{totals}");
    assert!(number(totals, "live_blocks_at_most") >= live, "{totals}");

    for text in [finished.stderr, scratch.report("summary").stdout, scratch.report("leaks").stdout]
    {
        let last = text.trim_end().lines().last().unwrap();
        assert!(last.starts_with("INCOMPLETE: "), "{last}");
        assert!(last.contains("events lost (ring full"), "{last}");
    }
    let leaks = scratch.report_json("leaks");
    assert_eq!(leaks["trust"]["complete"], false);
    assert_eq!(leaks["trust"]["counters_add_up"], true);
    assert_eq!(number(&leaks["trust"], "lost_events"), lost);
    // What is there is undamaged, though.
    assert_eq!(scratch.verify(), Some(0));
}

#[test]
fn loss_alone_does_not_change_the_exit_code() {
    let program = programs::build("pairs.c", Variant::Default);
    let scratch = Scratch::new();
    let options = ["--ring-buffer", TINY];
    run(&mut scratch.trace_program(&options, program, &["100000", "64", "2"])).assert_code(0);
    assert!(scratch.export().lost() > 0);
}
