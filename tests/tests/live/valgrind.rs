//! The totals are those of valgrind, but for what it counts otherwise (C31).

use std::process::Command;

use memscope_tests::oracle::{self, LOG_VARIABLE};
use memscope_tests::{Variant, programs};

use crate::kit::{Export, Scratch, is_installed, run, skip};

#[derive(Debug, PartialEq, Eq)]
struct HeapUsage {
    allocations: u64,
    frees: u64,
    bytes: u64,
}

/// `total heap usage: 1,234 allocs, 1,200 frees, 56,789 bytes allocated`
fn valgrind(source: &str, arguments: &[&str]) -> HeapUsage {
    let mut command = Command::new("valgrind");
    // What the C library would free only for valgrind's sake is left alone.
    command.arg("--run-libc-freeres=no").arg("--run-cxx-freeres=no");
    command.arg(programs::build(source, Variant::Default)).args(arguments);
    let finished = run(&mut command);
    finished.assert_code(0);
    let line = finished.stderr.lines().find(|line| line.contains("total heap usage:")).unwrap();
    let numbers: Vec<u64> = line
        .split("usage:")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .filter_map(|word| word.replace(',', "").parse().ok())
        .collect();
    let [allocations, frees, bytes] = numbers[..] else { panic!("{line}") };
    HeapUsage { allocations, frees, bytes }
}

fn memscope(source: &str, arguments: &[&str]) -> (HeapUsage, Export) {
    let scratch = Scratch::new();
    let program = programs::build(source, Variant::Default);
    run(&mut scratch.trace_program(&["--strict"], program, arguments)).assert_code(0);
    let export = scratch.export();
    let usage = HeapUsage {
        allocations: export.total("allocations"),
        frees: export.total("frees"),
        bytes: export.total("allocated_bytes"),
    };
    (usage, export)
}

/// Failed reallocations of live blocks, of which valgrind counts each as an allocation and a free.
fn failed_reallocations(source: &str, arguments: &[&str]) -> HeapUsage {
    let program = programs::build_with_oracle(source, Variant::Default);
    let scratch = Scratch::new();
    let base = scratch.path("log");
    let finished = run(Command::new(program).args(arguments).env(LOG_VARIABLE, &base));
    finished.assert_code(0);
    let [image] = &oracle::read_logs(&base)[..] else { panic!("one process image") };
    let failed = image.calls.iter().filter(|call| call.failed() && call.old_address != 0);
    let none = HeapUsage { allocations: 0, frees: 0, bytes: 0 };
    failed.fold(none, |sum, call| HeapUsage {
        allocations: sum.allocations + 1,
        frees: sum.frees + 1,
        bytes: sum.bytes.wrapping_add(call.size),
    })
}

fn assert_equal(source: &str, arguments: &[&str]) {
    if !is_installed("valgrind") {
        return skip("totals against valgrind", "valgrind is not installed");
    }
    let (ours, export) = memscope(source, arguments);
    export.assert_complete();
    let theirs = valgrind(source, arguments);
    let explained = failed_reallocations(source, arguments);
    eprintln!(
        "{source}: memscope {ours:?}, valgrind {theirs:?}, failed reallocations {explained:?}"
    );
    let expected = HeapUsage {
        allocations: ours.allocations + explained.allocations,
        frees: ours.frees + explained.frees,
        bytes: ours.bytes.wrapping_add(explained.bytes),
    };
    assert_eq!(
        theirs, expected,
        "valgrind counts failed reallocations, and nothing else, otherwise"
    );
}

#[test]
fn c31_totals_of_call_chains_equal_valgrinds() {
    assert_equal("chain.c", &[]);
}

/// valgrind ends a program that calls pvalloc.
#[test]
fn c31_totals_of_every_kind_of_call_equal_valgrinds() {
    assert_equal("mix.c", &["1", "10000", "1", "no_pvalloc"]);
}

#[test]
fn c31_totals_of_leaks_equal_valgrinds() {
    assert_equal("leaks.c", &["3", "20000"]);
}

/// Whose library keeps a pool for exceptions.
#[test]
fn c31_totals_in_cpp_equal_valgrinds() {
    assert_equal("chain.cpp", &[]);
}

#[test]
fn c31_totals_in_rust_equal_valgrinds() {
    assert_equal("mix.rs", &["1", "100"]);
}
