//! Process images: exec, fork, exit codes, and on whose behalf a command runs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use memscope_tests::{Figures, Variant, programs};

use crate::kit::{Export, NOBODY, Scratch, number, run};

fn numbers(row: &[&str]) -> Vec<u64> {
    row.iter().map(|text| text.parse().unwrap()).collect()
}

/// Traces a program that replaces itself; what its images printed, and the export.
fn trace_images(arguments: &[&str]) -> (Figures, Export) {
    trace_images_with(&[], arguments)
}

fn trace_images_with(options: &[&str], arguments: &[&str]) -> (Figures, Export) {
    let scratch = Scratch::new();
    let program = programs::build("execer.c", Variant::Default);
    let finished = run(&mut scratch.trace_program(options, program, arguments));
    finished.assert_code(0);
    let (figures, export) = (Figures::parse(&finished.stdout), scratch.export());
    let (rows, processes) = (figures.rows("image"), export.list("processes"));
    assert_eq!(processes.len(), rows.len(), "an entry per image: {processes:#?}");
    for (place, (process, row)) in processes.iter().zip(&rows).enumerate() {
        assert_eq!(number(process, "pid"), numbers(row)[1]);
        assert_eq!(number(process, "image"), place as u64);
        let last = place + 1 == rows.len();
        assert_eq!(process["end"], if last { "exit" } else { "exec" });
    }
    assert_eq!(export.lost(), 0);
    (figures, export)
}

/// The C library's own blocks, for threads, are given apart: their sizes are its affair.
fn assert_image(export: &Export, place: usize, row: &[&str], own: u64) {
    let process = number(&export.list("processes")[place], "process");
    let [_, _, allocations, bytes, frees, live_blocks, live_bytes] = numbers(row)[..] else {
        panic!("{row:?}");
    };
    let sum = |key| export.sum_of(process, key);
    assert_eq!(sum("allocations"), allocations + own, "image {place}");
    assert_eq!(sum("frees"), frees, "image {place}");
    assert_eq!(sum("live_blocks"), live_blocks + own, "they stay live: image {place}");
    if own == 0 {
        assert_eq!((sum("allocated_bytes"), sum("live_bytes")), (bytes, live_bytes));
    }
}

#[test]
fn c22_exec_begins_a_new_image_and_leaves_the_blocks_of_the_old_one_live() {
    let (figures, export) = trace_images(&["3", "100", "48"]);
    export.assert_complete();
    assert_eq!(export.total("unknown_frees"), 0);
    for (place, row) in figures.rows("image").iter().enumerate() {
        assert_image(&export, place, row, 0);
    }
}

/// Probes in all processes are no thread's.
#[test]
fn c22_exec_by_a_second_thread_leaves_the_probes_alone() {
    let (figures, export) = trace_images(&["2", "60", "32", "thread"]);
    export.assert_complete();
    assert_eq!(export.total("unknown_frees"), 0);
    let rows = figures.rows("image");
    assert_image(&export, 0, &rows[0], 1);
    assert_eq!(export.list("processes")[1]["probed_late"], false);
}

/// The kernel takes the probes away with the thread that they were made for. They are put back, and what
/// was done meanwhile is missing and said to be.
#[test]
fn c22_exec_by_a_second_thread_is_no_silent_loss() {
    let (figures, export) =
        trace_images_with(&["--probes", "targets"], &["2", "60", "32", "thread"]);
    let rows = figures.rows("image");
    assert_image(&export, 0, &rows[0], 1);
    let second = &export.list("processes")[1];
    assert_eq!(second["probed_late"], true);
    assert!(export.sum_of(number(second, "process"), "allocations") <= 60);
    assert!(!export.is_complete());
    let trust = export.0["trust"].as_str().unwrap();
    assert!(trust.contains("1 process image may have allocated before being probed"), "{trust}");
}

/// What was attached for the thread that is gone must not count beside what was attached anew.
#[test]
fn after_an_exec_by_a_second_thread_each_call_counts_once() {
    let scratch = Scratch::new();
    let program = programs::build("execer.c", Variant::Default);
    let paced = programs::build("paced.c", Variant::Default);
    let paced = paced.to_str().unwrap();
    let arguments = ["1", "60", "32", "thread", "--", paced, "1500", "64", "20000"];
    let options = ["--probes", "targets"];
    let finished = run(&mut scratch.trace_program(&options, program, &arguments));
    finished.assert_code(0);
    let export = scratch.export();
    assert_eq!(export.lost(), 0, "{}", export.0["loss"]);
    let of_paced = finished.stdout.lines().filter_map(|line| line.strip_prefix("allocations "));
    let most: u64 = of_paced.map(|number| number.parse::<u64>().unwrap()).sum();
    let second = number(&export.list("processes")[1], "process");
    let recorded = export.sum_of(second, "allocations");
    eprintln!("{recorded} of {most} allocations, from when it was probed again");
    assert!((1..=most).contains(&recorded), "{recorded} of {most}");
    // Those between the probing of frees and that of allocations; all of them, if each counted twice.
    assert!(export.total("unknown_frees") * 10 < recorded, "{}", export.0["totals"]);
}

#[test]
fn frees_of_a_forked_child_leave_the_parents_blocks_alone() {
    let scratch = Scratch::new();
    let program = programs::build("forker.c", Variant::Default);
    let finished = run(&mut scratch.trace_program(&[], program, &["100", "40", "30"]));
    finished.assert_code(0);
    let figures = Figures::parse(&finished.stdout);
    let export = scratch.export();
    export.assert_complete();
    assert_eq!(export.list("processes").len(), 2);
    let mut inherited_frees = 0;
    for who in ["parent", "child"] {
        let row = numbers(&figures.rows(who)[0]);
        let process = number(export.processes_of(row[0])[0], "process");
        for (key, column) in [
            ("allocations", 1),
            ("allocated_bytes", 2),
            ("frees", 3),
            ("live_blocks", 5),
            ("live_bytes", 6),
        ] {
            assert_eq!(export.sum_of(process, key), row[column], "{key} of the {who}");
        }
        inherited_frees += row[4];
    }
    assert_eq!(export.total("inherited_frees"), inherited_frees);
    assert_eq!(export.total("unknown_frees"), 0);
}

#[test]
fn the_exit_code_of_the_command_is_handed_back() {
    let ends = [
        ("exit", 7),
        ("_exit", 7),
        ("abort", 128 + libc::SIGABRT),
        ("segv", 128 + libc::SIGSEGV),
        ("thread", 128 + libc::SIGSEGV),
        ("kill", 128 + libc::SIGKILL),
    ];
    for (how, code) in ends {
        let scratch = Scratch::new();
        let program = programs::build("crash.c", Variant::Default);
        let finished = run(&mut scratch.trace_program(&[], program, &[how, "100", "7"]));
        finished.assert_code(code);
        assert_eq!(scratch.verify(), Some(0), "{how}");
        let export = scratch.export();
        let created = u64::from(how == "thread");
        assert_eq!(export.total("live_blocks"), 100 + created, "{how}: all are live at the end");
        assert!(export.is_complete(), "{how}: {}", export.0["trust"]);
        assert_eq!(export.list("processes")[0]["exit_status"], code, "{how}");
    }
}

#[test]
fn x02_strict_says_that_nothing_was_captured() {
    let scratch = Scratch::new();
    let program = programs::build("noalloc.c", Variant::Default);
    let finished = run(&mut scratch.trace_program(&["--strict"], &program, &[]));
    finished.assert_code(3);
    assert!(
        finished.stderr.contains("No allocation was recorded; the probes had 0 hits."),
        "{finished:?}"
    );
    let finished = run(&mut scratch.trace_program(&[], &program, &[]));
    finished.assert_code(0);
    assert!(finished.stderr.contains("No allocation was recorded"), "a warning in any case");
}

#[test]
fn under_sudo_the_command_and_the_recording_belong_to_the_caller() {
    let scratch = Scratch::new();
    // As a user's own folder: others have no business in it, but the way there is open.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let mut command =
        scratch.trace_program(&[], "sh", &["-c", "id -u; id -g; echo $SUDO_UID $KEPT"]);
    command.current_dir(&folder).env("SUDO_UID", NOBODY.to_string());
    let finished = run(command.env("SUDO_GID", NOBODY.to_string()).env("KEPT", "kept"));
    finished.assert_code(0);
    assert_eq!(finished.stdout, format!("{NOBODY}\n{NOBODY}\n{NOBODY} kept\n"));
    let metadata = fs::metadata(scratch.recording()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY));
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(scratch.export().total("allocations") > 0);
}

#[test]
fn without_sudo_the_recording_is_roots_alone() {
    let scratch = Scratch::new();
    run(&mut scratch.trace_program(&[], "id", &["-u"])).assert_code(0);
    let metadata = fs::metadata(scratch.recording()).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o600));
}
