//! Programs that bring an allocator which nobody has had before, and are over before it is probed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use memscope_tests::{Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Scratch, run};
use crate::processes::{by_comm, of_process, trace_selected};

/// So many programs begin at once.
const PROGRAMS: usize = 40;

/// A program with an allocator of its own, `count` times: each a file of its own, and all are called `own`.
fn own_programs(folder: &Path, count: usize) -> Vec<PathBuf> {
    let program = programs::build("forker.c", Variant::Static);
    let copies = (0..count).map(|number| folder.join(number.to_string()).join("own"));
    copies
        .inspect(|copy| {
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(&program, copy).unwrap();
        })
        .collect()
}

fn run_together(commands: impl Iterator<Item = Command>) {
    let children: Vec<Child> =
        commands.map(|mut command| command.stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

fn is_late(process: &Value) -> bool {
    process["probed_late"].as_bool().unwrap()
}

/// What a process was seen to do.
fn counts(process: &Value) -> (u64, u64) {
    (of_process(process, "allocations"), of_process(process, "frees"))
}

/// No process may be missed without being counted. Gives how many were late.
fn assert_whole_or_late(
    export: &Export,
    processes: &[&Value],
    whole: &BTreeSet<(u64, u64)>,
) -> usize {
    for process in processes {
        assert!(is_late(process) || whole.contains(&counts(process)), "{process:#}");
    }
    let late = processes.iter().filter(|process| is_late(process)).count();
    assert_eq!(export.is_complete(), late == 0);
    late
}

/// Each runs twice, and its child is a copy of it. The first time nobody can know what it will be; the second time all of them are
/// recorded, however short they are.
#[test]
fn programs_that_are_over_before_they_are_probed_are_counted() {
    let scratch = Scratch::new();
    let programs = own_programs(&scratch.path("programs"), PROGRAMS);
    let memscope = trace_selected(&scratch, &["--comm", "own"]);
    let commands = || programs.iter().map(Command::new);
    run_together(commands());
    // Until the files are probed, which those of the second time might precede.
    sleep(Duration::from_secs(1));
    run_together(commands());
    memscope.end_by(libc::SIGINT).assert_code(0);
    let export = scratch.export();
    let processes = by_comm(&export, "own");
    assert_eq!(processes.len(), 4 * PROGRAMS, "parents and children, twice");
    let whole: Vec<_> = processes.iter().filter(|process| !is_late(process)).collect();
    // A process that was late may have done the same, if it was late by little.
    let whole: BTreeSet<_> = whole.into_iter().map(|process| counts(process)).collect();
    assert_eq!(whole.len(), 2, "a parent's, and a child's: {whole:?}");
    let late = assert_whole_or_late(&export, &processes, &whole);
    assert_eq!(late, 2 * PROGRAMS);
    let trust = export.0["trust"].as_str().unwrap();
    assert!(trust.contains("80 process images may have allocated before being probed"), "{trust}");
}

/// In its own root directory the file of a program that is over cannot be found.
#[test]
fn a_program_whose_file_cannot_be_found_any_more_is_counted() {
    let scratch = Scratch::new();
    let programs = own_programs(&scratch.path("root"), 8);
    let memscope = trace_selected(&scratch, &["--comm", "own"]);
    run_together((0..programs.len()).map(|number| {
        let mut command = Command::new("chroot");
        command.arg(scratch.path("root")).arg(format!("/{number}/own"));
        command
    }));
    memscope.end_by(libc::SIGINT).assert_code(0);
    let export = scratch.export();
    let processes = by_comm(&export, "own");
    let expected = run_alone(&programs[0]);
    let late = assert_whole_or_late(&export, &processes, &expected);
    assert!(late > 0, "nobody can know of the first one");
}

/// What a whole recording of it has.
fn run_alone(program: &Path) -> BTreeSet<(u64, u64)> {
    let scratch = Scratch::new();
    run(&mut scratch.trace_program(&[], program, &[])).assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    export.list("processes").iter().map(counts).collect()
}
