//! What each thread did, and what it is called.

use std::io::Write as _;
use std::process::{Command, Stdio};

use memscope_tests::{Figures, Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Scratch, number, run, wait_until};

const THREADS: usize = 5;
/// What the program prints of a thread after its number and its name.
const NUMBERS: [&str; 6] =
    ["allocations", "allocated_bytes", "frees", "freed_bytes", "live_blocks", "live_bytes"];

/// Each row that the program has printed is a row of the export, and that of `main` is there as well.
fn assert_named(said: &str, export: &Export) {
    let figures = Figures::parse(said);
    let rows = figures.rows("thread");
    assert_eq!(rows.len(), THREADS, "{said}");
    let threads = export.list("threads");
    for row in rows {
        let of = |thread: &&Value| number(thread, "thread").to_string() == row[0];
        let thread = threads.iter().find(of).unwrap_or_else(|| panic!("no thread {}", row[0]));
        assert_eq!(thread["name"], row[1], "{thread:#}");
        for (key, expected) in NUMBERS.iter().zip(&row[2..]) {
            assert_eq!(&number(thread, key).to_string(), expected, "{key} of {thread:#}");
        }
    }
    let main = threads.iter().find(|thread| thread["thread"] == thread["pid"]).unwrap();
    assert_eq!((&main["name"], number(main, "allocations")), (&main["comm"], THREADS as u64));
    assert_eq!(threads.len(), THREADS + 1);
}

#[test]
fn threads_that_end_have_the_name_that_they_had_then() {
    let scratch = Scratch::new();
    let program = programs::build("named.c", Variant::Default);
    let threads = THREADS.to_string();
    let finished = run(&mut scratch.trace_program(&["--strict"], program, &[&threads]));
    finished.assert_code(0);
    assert_named(&finished.stdout, &scratch.export());
    let told = scratch.report("threads").stdout;
    assert!(told.starts_with("Threads by bytes allocated: 6\n"), "{told}");
    assert!(told.lines().nth(3).is_some_and(|line| line.ends_with("  worker-5")), "{told}");
}

#[test]
fn threads_that_run_on_are_named_too() {
    let scratch = Scratch::new();
    let program = programs::build("named.c", Variant::Default);
    let mut command = Command::new(program);
    command.args([&THREADS.to_string(), "1", "wait", "linger"]);
    let said = scratch.path("said");
    command.stdin(Stdio::piped()).stdout(std::fs::File::create(&said).unwrap());
    let mut child = command.spawn().unwrap();
    let read = || std::fs::read_to_string(&said).unwrap();
    wait_until("the program waits", || read().contains("ready"));
    let memscope = scratch.attach(&["--strict"], &[child.id()]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    wait_until("its threads have worked", || read().contains("done"));
    memscope.end_by(libc::SIGINT).assert_code(0);
    assert_named(&read(), &scratch.export());
    input.write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
}
