//! The programs' own figures agree with what the oracle saw them do, so a test may trust either.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use crate::oracle::{self, LOG_VARIABLE, OracleCounts, OracleFunction, OracleImage, OracleTotals};
use crate::process::{Figures, TestProgram};
use crate::programs::{self, Variant};

struct Run {
    figures: Figures,
    status: ExitStatus,
    images: Vec<OracleImage>,
}

impl Run {
    /// Of the only process image there was.
    fn totals(&self) -> OracleTotals {
        assert_eq!(self.images.len(), 1, "this program is one process image");
        OracleTotals::of(&self.images[0])
    }
}

/// Runs the program to its end with the oracle linked in.
fn run(source: &str, arguments: &[&str]) -> Run {
    let program = programs::build_with_oracle(source, Variant::Default);
    run_command(Command::new(program).args(arguments), false)
}

fn run_command(command: &mut Command, preload: bool) -> Run {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let base = directory.path().join("log");
    command.env(LOG_VARIABLE, &base).stdin(Stdio::null());
    if preload {
        oracle::preload(command, &base);
    }
    let output = command.output().expect("the program starts");
    let stdout = String::from_utf8(output.stdout).expect("a test program prints UTF-8");
    Run {
        figures: Figures::parse(&stdout),
        status: output.status,
        images: oracle::read_logs(&base),
    }
}

/// What the program printed, the C library's own calls for its threads added.
fn assert_counts(figures: &Figures, totals: &OracleTotals) {
    let printed = |key| figures.number(key);
    let counts = totals.counts;
    // One block per thread, for its thread-local storage; its size is the C library's affair.
    let created = figures
        .rows("threads_created")
        .first()
        .map_or(0, |row| row[0].parse().expect("a count is a number"));
    assert_eq!(counts.allocations, printed("allocations") + created);
    assert_eq!(counts.frees, printed("frees"));
    assert_eq!(counts.freed_bytes, printed("freed_bytes"));
    assert_eq!(counts.reallocations, printed("reallocations"));
    assert_eq!(counts.failed_allocations, printed("failed_allocations"));
    assert_eq!(counts.live_blocks, printed("live_blocks") + created);
    if created == 0 {
        assert_eq!(counts.allocated_bytes, printed("allocated_bytes"));
        assert_eq!(counts.live_bytes, printed("live_bytes"));
    }
    assert_eq!(counts.unknown_frees, 0);
    assert_eq!(counts.allocations - counts.frees, counts.live_blocks);
}

#[test]
fn c_programs_of_one_process() {
    let runs: [(&str, &[&str]); 18] = [
        ("pairs.c", &["1000"]),
        ("mix.c", &["1", "100000"]),
        ("mix.c", &["1", "100000", "7"]),
        ("mix.c", &["8", "50000"]),
        ("chain.c", &[]),
        ("lifetime.c", &["1", "1000"]),
        ("reuse.c", &[]),
        ("threads_exit.c", &[]),
        ("crash.c", &["abort"]),
        ("crash.c", &["segv"]),
        ("crash.c", &["thread"]),
        ("crash.c", &["kill"]),
        ("crash.c", &["quick_exit"]),
        ("ctor_main.c", &[]),
        ("signal_alloc.c", &["100"]),
        ("signal_alloc.c", &["100", "altstack"]),
        ("server.c", &["4", "500", "0", "20000"]),
        ("paced.c", &["5", "64", "1000"]),
    ];
    for (source, arguments) in runs {
        eprintln!("{source} {arguments:?}");
        let run = run(source, arguments);
        assert_counts(&run.figures, &run.totals());
        if source != "crash.c" {
            assert!(run.status.success(), "{source}: {}", run.status);
        }
    }
}

#[test]
fn mix_states_its_peak_and_null_frees() {
    let run = run("mix.c", &["1", "100000"]);
    let totals = run.totals();
    assert_eq!(totals.counts.null_frees, run.figures.number("null_frees"));
    assert_eq!(totals.peak_live_bytes, run.figures.number("peak_live_bytes"));
    assert_eq!(totals.peak_live_blocks, run.figures.number("peak_live_blocks"));
    let mut functions: Vec<OracleFunction> =
        run.images[0].calls.iter().map(|call| call.function).collect();
    functions.sort_by_key(|function| *function as u8);
    functions.dedup();
    assert_eq!(functions.len(), 10, "mix.c calls every function: {functions:?}");
}

#[test]
fn runs_are_deterministic() {
    for (source, arguments) in
        [("mix.c", ["8", "20000"]), ("mix.cpp", ["4", "50"]), ("mix.rs", ["4", "50"])]
    {
        assert_eq!(run(source, &arguments).figures, run(source, &arguments).figures, "{source}");
    }
}

#[test]
fn preloading_sees_the_same_as_linking() {
    for source in ["mix.c", "mix.cpp", "mix.rs"] {
        let program = programs::build(source, Variant::FramePointers);
        let preloaded = run_command(&mut Command::new(program), true);
        let linked = run(source, &[]);
        assert_eq!(preloaded.figures, linked.figures, "{source}");
        if source == "mix.c" {
            assert_eq!(preloaded.totals().counts, linked.totals().counts);
        }
        // The other two leave nothing but what they mean to, and what their runtimes keep.
        for run in [preloaded, linked] {
            let counts = run.totals().counts;
            assert_eq!(counts.unknown_frees, 0, "{source}");
            if source != "mix.c" {
                assert!(counts.live_blocks >= run.figures.number("kept_blocks"), "{source}");
                assert!(counts.live_bytes >= run.figures.number("kept_bytes"), "{source}");
            }
        }
    }
}

#[test]
fn ends_are_as_asked_for() {
    let ends: [(&str, Option<i32>, Option<i32>); 7] = [
        ("abort", None, Some(libc::SIGABRT)),
        ("segv", None, Some(libc::SIGSEGV)),
        ("thread", None, Some(libc::SIGSEGV)),
        ("kill", None, Some(libc::SIGKILL)),
        ("exit", Some(9), None),
        ("_exit", Some(9), None),
        ("quick_exit", Some(9), None),
    ];
    for (how, code, signal) in ends {
        let status = run("crash.c", &[how, "10", "9"]).status;
        assert_eq!((status.code(), status.signal()), (code, signal), "{how}");
    }
    assert_eq!(run("early_exit.c", &["5"]).status.code(), Some(5));
}

#[test]
fn every_leak_is_alive_at_the_end() {
    let plugin = format!("plugin={}", programs::plugin_library(Variant::Default).display());
    for unload in [None, Some("unload")] {
        let mut arguments = vec!["3", "20000", "threads", "fork", &plugin];
        arguments.extend(unload);
        let run = run("leaks.c", &arguments);
        assert!(run.status.success());
        for image in &run.images {
            let key = if image.forked { "child_leak" } else { "leak" };
            // No two leaks of this program have the same size, nor has its noise blocks left.
            let live: Vec<u64> = OracleTotals::of(image).live.into_values().collect();
            for row in run.figures.rows(key) {
                let [.., count, bytes, _line] = row[..] else {
                    panic!("a leak row has more fields: {row:?}")
                };
                let (count, bytes): (usize, u64) = (count.parse().unwrap(), bytes.parse().unwrap());
                let size = bytes / count as u64;
                assert_eq!(live.iter().filter(|live| **live == size).count(), count, "{row:?}");
            }
        }
    }
}

#[test]
fn images_of_exec() {
    for extra in [&[][..], &["thread"]] {
        let run = run("execer.c", &[&["3", "100", "48"], extra].concat());
        let rows = run.figures.rows("image");
        assert_eq!((rows.len(), run.images.len()), (3, 3));
        for (number, (image, row)) in run.images.iter().zip(rows).enumerate() {
            assert_eq!((image.image as usize, image.forked), (number, false));
            assert_eq!(image.pid.to_string(), row[1]);
            let counts = OracleTotals::of(image).counts;
            // The last image does not exec, so no thread is made there.
            let created = u64::from(!extra.is_empty() && number < 2);
            assert_eq!(counts.allocations, 100 + created);
            assert_eq!((counts.frees, counts.live_blocks), (50, 50 + created));
        }
    }
}

#[test]
fn a_forked_child_logs_for_itself() {
    let run = run("forker.c", &[]);
    assert_eq!(run.images.len(), 2);
    for image in &run.images {
        let counts = OracleTotals::of(image).counts;
        let key = if image.forked { "child" } else { "parent" };
        let row = run.figures.rows(key).remove(0);
        let row: Vec<u64> = row.iter().map(|field| field.parse().unwrap()).collect();
        assert_eq!(
            row,
            [
                u64::from(image.pid),
                counts.allocations,
                counts.allocated_bytes,
                counts.frees,
                counts.inherited_frees,
                counts.live_blocks,
                counts.live_bytes
            ]
        );
    }
    let [first, second] = &run.images[..] else { panic!("counted above") };
    let (parent, child) = if first.forked { (second, first) } else { (first, second) };
    assert!(child.forked && child.parent_pid == parent.pid);
}

#[test]
fn spawned_children_log_for_themselves() {
    let run = run("vforker.c", &[]);
    let rows = [run.figures.rows("parent"), run.figures.rows("child")].concat();
    assert_eq!((run.images.len(), rows.len()), (5, 5));
    for image in &run.images {
        let counts = OracleTotals::of(image).counts;
        let row = rows
            .iter()
            .find(|row| row[0] == image.pid.to_string())
            .expect("every process prints its row");
        let numbers = [
            counts.allocations,
            counts.allocated_bytes,
            counts.frees,
            counts.live_blocks,
            counts.live_bytes,
        ];
        assert_eq!(row[1..], numbers.map(|number| number.to_string()));
        assert!(!image.forked);
    }
}

#[test]
fn an_image_without_allocations_has_an_empty_log() {
    let run = run("early_exit.c", &[]);
    assert_eq!(run.totals().counts, OracleCounts::default());
    assert!(run.images[0].exe.ends_with("early_exit-c"));
}

#[test]
fn a_program_waits_and_lingers() {
    let program = programs::build("pairs.c", Variant::Default);
    let mut pairs = TestProgram::spawn(Command::new(program).args(["10", "8", "wait", "linger"]));
    assert_eq!(pairs.wait_ready(), pairs.pid());
    pairs.go();
    assert_eq!(pairs.figures().number("allocations"), 10);
    let state = fs::read_to_string(format!("/proc/{}/stat", pairs.pid()))
        .expect("a lingering program is there");
    assert!(!state.contains(" Z "), "a lingering program is alive");
    pairs.go();
    let (rest, status) = pairs.finish();
    assert_eq!(rest, Figures::default());
    assert!(status.success());
}

#[test]
fn a_server_ends_when_told() {
    let program = programs::build("server.c", Variant::Default);
    let mut server = TestProgram::spawn(Command::new(program).args(["2", "100"]));
    server.wait_ready();
    server.signal(libc::SIGTERM);
    let (figures, status) = server.finish();
    assert!(status.success());
    assert_eq!(figures.number("damaged"), 0);
    assert_eq!(figures.number("live_blocks"), 0);
}

#[test]
fn a_program_without_an_allocator() {
    let program = programs::build("noalloc.c", Variant::Default);
    let mut noalloc = TestProgram::spawn(&mut Command::new(program));
    assert_eq!(noalloc.wait_ready(), noalloc.pid());
    let (figures, status) = noalloc.finish();
    assert_eq!(figures.number("done"), 1);
    assert!(status.success());
}

#[test]
fn every_variant_compiles_and_runs() {
    use Variant::*;
    for variant in [Default, FramePointers, Unoptimised, NoPie, Static, Stripped, DebugLink, RustV0]
    {
        for source in ["chain.c", "chain.cpp", "chain.rs"] {
            let run = run_command(&mut Command::new(programs::build(source, variant)), false);
            assert!(run.status.success(), "{source} {variant:?}");
            assert!(!run.figures.chains().is_empty(), "{source} {variant:?}");
        }
    }
}
