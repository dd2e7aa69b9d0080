//! What a traced call costs, beside what nothing on this kernel can go below.

use std::path::PathBuf;
use std::process::Command;

use memscope_tests::floor::{Floor, FloorProbe};
use memscope_tests::{TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{Scratch, memscope, number, run};

const PAIRS: &str = "1000000";
/// Each variant runs so often; its quickest run counts, because others were disturbed.
const ROUNDS: usize = 3;
/// What memscope may cost at most, as a multiple of the floor. Generous: the test is to
/// find a probe that single-steps or a program gone wild on any machine, however noisy.
const MOST_TIMES_FLOOR: f64 = 4.0;

/// The loop that waits to be looked at.
fn waiting() -> TestProgram {
    let program = programs::build("pairs.c", Variant::Default);
    let mut program = TestProgram::spawn(Command::new(program).args([PAIRS, "32", "1", "wait"]));
    program.wait_ready();
    program
}

/// Lets it run; nanoseconds per pair.
fn pace(mut program: TestProgram) -> f64 {
    program.go();
    let (figures, status) = program.finish();
    assert!(status.success(), "{status}");
    figures.float("ns_per_pair")
}

/// malloc's entry and return, and free's entry, on the instructions that memscope probes.
fn floor_of(pid: u32) -> Floor {
    let mut doctor = memscope();
    doctor.args(["doctor", "--json", "--pid", &pid.to_string()]);
    let diagnosis: Value = serde_json::from_str(&run(&mut doctor).stdout).unwrap();
    let stacks = &diagnosis["process"]["stacks"];
    assert_eq!(number(stacks, "files_refused"), 0);
    assert!(number(stacks, "kernel_bytes") > 0 && number(stacks, "rows") > 20_000, "{stacks}");
    let libc = &diagnosis["process"]["allocators"][0];
    let file_offset = |function: &str| {
        let probes = libc["probes"].as_array().unwrap().iter();
        let mut named = probes.filter(|probe| probe["function"] == function);
        number(named.next().expect("glibc has it"), "file_offset")
    };
    let (malloc, free) = (file_offset("malloc"), file_offset("free"));
    let path = PathBuf::from(libc["path"].as_str().unwrap());
    let probes = [(malloc, true), (malloc, false), (free, false)]
        .map(|(file_offset, at_return)| FloorProbe { file_offset, at_return });
    Floor::attach(pid, &path, &probes).unwrap()
}

#[test]
fn c28_a_pair_costs_little_more_than_three_programs_that_do_nothing() {
    let (mut untraced, mut floor, mut traced) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        untraced = untraced.min(pace(waiting()));

        let program = waiting();
        let empty = floor_of(program.pid());
        floor = floor.min(pace(program));
        drop(empty);

        let program = waiting();
        let scratch = Scratch::new();
        let memscope = scratch.attach(&["--strict"], &[program.pid()]);
        traced = traced.min(pace(program));
        memscope.finish().assert_code(0);
        let export = scratch.export();
        export.assert_complete();
        assert_eq!(export.total("allocations"), 1_000_000);
    }
    eprintln!(
        "ns per malloc and free: {untraced:.0} untraced, {floor:.0} with three programs that do \
         nothing, {traced:.0} with memscope: {:.2} times the floor",
        traced / floor
    );
    assert!(floor > 2.0 * untraced, "the empty programs were not called");
    assert!(traced < MOST_TIMES_FLOOR * floor, "{traced} is far above the floor of {floor}");
}
