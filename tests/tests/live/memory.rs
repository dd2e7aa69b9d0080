//! What processes had in memory over time, beside what is live in them.

use std::process::Command;

use memscope_tests::{TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Scratch, number, run};

const MIB: u64 = 1 << 20;

/// What a process has beside the blocks it was told to touch: code, its stack, the C library's
/// own, and what the kernel's counters are off by.
const SLACK: u64 = 4 * MIB;

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(programs::build("resident.c", Variant::Default));
    command.args(arguments);
    command
}

fn memory_of(export: &Export) -> &Value {
    let memory = &export.list("processes")[0]["memory"];
    assert!(memory.is_object(), "{memory}");
    memory
}

fn resident(point: &Value) -> u64 {
    ["anon", "file", "shmem"].iter().map(|key| number(&point["rss_bytes"], key)).sum()
}

#[track_caller]
fn assert_near(found: u64, expected: u64, what: &str) {
    assert!(found >= expected && found <= expected + SLACK, "{what}: {found}, not {expected}");
}

/// The laws of every timeline, whatever the program did.
fn assert_ordered(memory: &Value) -> &[Value] {
    let points = memory["points"].as_array().unwrap();
    let times: Vec<u64> = points.iter().map(|point| number(point, "time_ns")).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(points.len() as u64, number(memory, "reading_count"), "too few to be thinned");
    let highest = number(memory, "peak_rss_bytes");
    // Both are counted per processor, and summed up now and then.
    assert!(points.iter().all(|point| resident(point) <= highest + MIB), "{memory}");
    points
}

#[test]
fn after_an_attach_the_trace_explains_what_was_allocated_since() {
    let mut program = TestProgram::spawn(&mut program(&["64", "32", "1500", "wait"]));
    let pid = program.wait_ready();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&["--strict"], &[pid]);
    program.go();
    let (figures, status) = program.finish();
    assert!(status.success(), "{status}");
    memscope.finish().assert_code(0);

    let export = scratch.export();
    export.assert_complete();
    assert_eq!(export.total("live_bytes"), 32 * MIB);
    assert_eq!(export.total("unknown_frees"), figures.number("unknown_frees"));
    assert_eq!(figures.number("unknown_frees"), 32);
    let memory = memory_of(&export);
    let points = assert_ordered(memory);
    let (first, last) = (points.first().unwrap(), points.last().unwrap());
    assert_near(resident(first), 64 * MIB, "before");
    // 32 blocks came and 32 of the older ones went.
    assert_near(resident(last), 64 * MIB, "after");
    assert_eq!((number(first, "live_bytes"), number(last, "live_bytes")), (0, 32 * MIB));
    assert_near(number(memory, "peak_rss_bytes"), 96 * MIB, "in between");
    let pss = number(first, "pss_bytes");
    assert!(pss > 63 * MIB && pss <= resident(first) + MIB, "{pss}");

    let at_attach = &memory["at_attach"];
    assert_eq!(number(at_attach, "resident_bytes"), resident(first));
    // Each block with its header takes a page more than a megabyte.
    assert_near(number(at_attach, "anonymous_mapped_bytes"), 64 * MIB, "mapped");
    assert_near(number(at_attach, "anonymous_resident_bytes"), 64 * MIB, "mapped and resident");
    let explained = &memory["explained"];
    assert_eq!(number(explained, "live_bytes"), 32 * MIB);
    assert_eq!(number(explained, "rss_bytes"), resident(last));

    let shown = scratch.report("memory").stdout;
    for told in
        ["Attached at 6", "blocks seen since explain\n32.0 MiB of 6", "32 frees were of blocks"]
    {
        assert!(shown.contains(told), "{told:?} in\n{shown}");
    }
    let summary = scratch.report("summary").stdout;
    // The program has ended, and was read before.
    assert!(summary.contains("; new blocks 32.0 MiB ("), "{summary}");
}

#[test]
fn live_blocks_of_a_command_explain_what_it_touches() {
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(
        &["--strict"],
        programs::build("resident.c", Variant::Default),
        &["48", "16", "600"],
    ));
    finished.assert_code(0);
    let summary = "live blocks explain 40.0 MiB of 4";
    assert!(finished.stderr.contains(summary), "{}", finished.stderr);
    let export = scratch.export();
    export.assert_complete();
    let memory = memory_of(&export);
    let points = assert_ordered(memory);
    assert!(memory["at_attach"].is_null());
    let last = points.last().unwrap();
    // 48 and 16, less every other of the 48.
    assert_eq!(number(last, "live_bytes"), 40 * MIB);
    assert_near(resident(last), 40 * MIB, "at the end");
    assert!(points.len() >= 4, "every 100 ms at first: {points:?}");
    // Not one reading shows live blocks of which the kernel knew nothing.
    for point in points {
        assert!(number(point, "live_bytes") <= resident(point) + MIB, "{point}");
    }
    let group = &last["cgroup"];
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(groups.contains(group["path"].as_str().unwrap()), "{group} in {groups}");
    assert!(
        !scratch
            .dump()
            .lines()
            .filter(|line| line.starts_with("memory +"))
            .collect::<Vec<_>>()
            .is_empty()
    );
}

/// What a shell runs is read as the shell itself is, and each image has what is its own.
#[test]
fn children_are_read_as_they_run() {
    let scratch = Scratch::new();
    let program = programs::build("resident.c", Variant::Default);
    let script = format!("{} 8 4 700; true", program.display());
    let finished = run(&mut scratch.trace_program(&["--strict"], "/bin/sh", &["-c", &script]));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let name = program.to_str().unwrap();
    let [child] = export
        .list("processes")
        .iter()
        .filter(|process| process["exe"] == name)
        .collect::<Vec<_>>()[..]
    else {
        panic!("one image of {name}")
    };
    let explained = &child["memory"]["explained"];
    // 8 and 4, less every other of the 8.
    assert_eq!(number(explained, "live_bytes"), 8 * MIB);
    assert_near(number(explained, "rss_bytes"), 8 * MIB, "of the child");
    assert_ordered(&child["memory"]);
    let shell = &export.list("processes")[0]["memory"];
    assert!(number(&shell["explained"], "rss_bytes") < 8 * MIB, "{shell}");
    assert!(scratch.report("memory").stdout.contains("live blocks explain 8.00 MiB of "));
}

/// A trace of a process that is idle has readings all the same.
#[test]
fn an_idle_process_is_read_until_the_trace_ends() {
    let mut program = TestProgram::spawn(&mut program(&["8", "0", "0", "wait"]));
    let pid = program.wait_ready();
    let scratch = Scratch::new();
    let pid = pid.to_string();
    run(scratch.trace(&["--duration", "1500ms", "--pid"]).arg(&pid)).assert_code(0);
    let export = scratch.export();
    let points = assert_ordered(memory_of(&export));
    assert!((6..40).contains(&points.len()), "{} in 1.5 s", points.len());
    let span = number(points.last().unwrap(), "time_ns") - number(&points[0], "time_ns");
    let duration = number(&export.0["capture"], "duration_ns");
    assert!(span >= 1_400_000_000, "{span} of {duration}");
    // The last one was read when the trace ended, its pages' shares too.
    assert_eq!(points.last().unwrap()["pss_time_ns"], points.last().unwrap()["time_ns"]);
    program.go();
    program.finish();
}
