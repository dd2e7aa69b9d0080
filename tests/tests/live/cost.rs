//! What a traced call costs, beside what nothing on this kernel can go below.

use std::path::PathBuf;
use std::process::Command;

use memscope_tests::floor::{Floor, FloorProbe, MultiProbe, RunTimes};
use memscope_tests::{TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{Scratch, memscope, number, run, skip};

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

/// Where malloc and free are probed, as memscope's doctor says.
fn probed(pid: u32) -> (PathBuf, u64, u64) {
    let mut doctor = memscope();
    // At its entry, as calls are probed that are followed to their return.
    doctor.args(["doctor", "--json", "--attach-by", "perf-event", "--pid", &pid.to_string()]);
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
    let path = PathBuf::from(libc["path"].as_str().unwrap());
    (path, file_offset("malloc"), file_offset("free"))
}

/// malloc's entry and return, and free's entry, on the cheapest instructions.
fn floor_of(pid: u32) -> Floor {
    let (path, malloc, free) = probed(pid);
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

#[test]
fn empty_programs_run_once_at_an_instruction_or_return_and_twice_in_a_session() {
    let _counting = RunTimes::measure().unwrap();
    let pairs: u64 = PAIRS.parse().unwrap();
    for (how, expected) in [
        (MultiProbe::Instruction, pairs),
        (MultiProbe::Return, pairs),
        (MultiProbe::Session, 2 * pairs),
        (MultiProbe::SessionWithoutReturn, pairs),
    ] {
        let program = waiting();
        let (libc, malloc, free) = probed(program.pid());
        let mut attached = Vec::new();
        for (how, place) in [(how, malloc), (MultiProbe::Instruction, free)] {
            match Floor::attach_multi(how, program.pid(), &libc, &[place]) {
                Ok(floor) => attached.push(floor),
                Err(error) => return skip("probes by one link", &format!("{how:?}: {error}")),
            }
        }
        pace(program);
        let runs: Vec<u64> = attached.iter().map(|floor| floor.run_time().unwrap().runs).collect();
        eprintln!("{how:?}: {runs:?} runs of the programs at malloc and free");
        // glibc allocates a little itself, and frees what the program has freed before.
        assert!((expected..expected + 1000).contains(&runs[0]), "{how:?}: {runs:?}");
        assert!((pairs..pairs + 1000).contains(&runs[1]), "{how:?}: {runs:?}");
    }
}
