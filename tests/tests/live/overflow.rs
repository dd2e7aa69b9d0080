//! What happens when records come faster than they can be taken.

use std::process::Command;
use std::time::{Duration, Instant};

use memscope_tests::{Figures, TestProgram, Variant, programs};

use crate::contract::assert_figures;
use crate::kit::{Scratch, number, run};

const THREADS: &str = "8";
const PAIRS: u64 = 50_000;

fn pairs() -> [String; 3] {
    [PAIRS.to_string(), "64".to_owned(), THREADS.to_owned()]
}

#[test]
fn what_is_lost_is_in_the_sums_of_its_site_all_the_same() {
    let program = programs::build("pairs.c", Variant::Default);
    let scratch = Scratch::new();
    let [count, size, threads] = &pairs();
    let options = ["--ring-buffer", "4KiB"];
    let traced = run(&mut scratch.trace_program(&options, program, &[count, size, threads]));
    traced.assert_code(0);
    let export = scratch.export();
    let loss = &export.0["loss"];
    let lost = number(&loss["by_cause"], "ring_full_allocation");
    assert!(lost > 0 && number(loss, "counted_allocations") == lost, "{loss}");
    let mut sites = export.list("sites").iter();
    let site = sites.find(|site| site["frames"][0]["function"] == "run").expect("it has frames");
    assert_eq!(number(site, "allocations"), 8 * PAIRS, "{site}");
    assert_eq!(number(site, "allocated_bytes"), 8 * PAIRS * 64, "{site}");
    let last = traced.stderr.trim_end().lines().last().unwrap();
    assert!(last.contains("are in their sites' sums all the same"), "{last}");
}

/// In the smallest, a thread that goes on for its share of time after another has sent the signal fills it: with signals to the
/// process, of which there can be one at a time, a quarter of the runs of sixteen threads lost records.
#[test]
fn a_paused_target_loses_nothing_in_a_small_ring() {
    let program = programs::build("pairs.c", Variant::Default);
    for (ring, count, threads) in [("64KiB", "50000", "8"), ("16KiB", "100000", "16")] {
        let scratch = Scratch::new();
        let options = ["--strict", "--ring-buffer", ring, "--on-overflow", "pause"];
        let traced = run(&mut scratch.trace_program(&options, &program, &[count, "64", threads]));
        traced.assert_code(0);
        let export = scratch.export();
        export.assert_complete();
        assert_figures(&export, &Figures::parse(&traced.stdout));
    }
}

#[test]
fn a_paused_target_goes_on_when_memscope_is_killed() {
    let program = programs::build("pairs.c", Variant::Default);
    for round in 0..5 {
        let mut command = Command::new(&program);
        let mut program = TestProgram::spawn(command.args(["300000", "64", "4", "wait"]));
        program.wait_ready();
        let scratch = Scratch::new();
        let options = ["--ring-buffer", "64KiB", "--on-overflow", "pause"];
        let memscope = scratch.attach(&options, &[program.pid()]);
        program.go();
        std::thread::sleep(Duration::from_millis(100 + 37 * round));
        memscope.end_by(libc::SIGKILL);
        let begun = Instant::now();
        let (figures, status) = program.finish();
        assert!(status.success(), "{status}");
        assert_eq!(figures.number("allocations"), 1_200_000);
        assert!(begun.elapsed() < Duration::from_secs(20), "it went on at once");
    }
}
