//! The totals are those of valgrind, but for what it counts otherwise (C31).

use std::process::Command;

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
