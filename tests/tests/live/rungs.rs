//! Each way of attaching probes, and how much of a stack is recorded: the numbers are the same.

use memscope_tests::verifier::series;
use memscope_tests::{Variant, programs};

use crate::attach::start;
use crate::bpf;
use crate::kit::{Scratch, number, run, skip};
use crate::oracle::{assert_equals_oracle, trace_with_oracle_and};
use crate::stacks_kit::called_frames;

/// The ways, and the first kernel that has them.
const WAYS: [(&str, (u32, u32)); 3] =
    [("session", (6, 13)), ("multi", (6, 10)), ("perf-event", (5, 15))];

/// Those that the running kernel has; says which it does not.
pub(crate) fn ways() -> Vec<&'static str> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let running = series(release.trim()).unwrap();
    let (major, minor) = running.split_once('.').unwrap();
    let running: (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let (here, missing): (Vec<_>, Vec<_>) =
        WAYS.into_iter().partition(|(_, since)| running >= *since);
    for (way, (major, minor)) in missing {
        skip(&format!("--attach-by {way}"), &format!("it takes Linux {major}.{minor}"));
    }
    here.into_iter().map(|(way, _)| way).collect()
}

#[test]
fn every_way_of_attaching_records_what_the_oracle_logs() {
    for way in ways() {
        let before = bpf::held();
        let (export, images) =
            trace_with_oracle_and(&["--attach-by", way], "mix.c", &["8", "3000"]);
        export.assert_complete();
        let expected = assert_equals_oracle(&export, 0, &images[0]);
        assert!(expected.counts.allocations > 1000, "the program did something");
        eprintln!("by {way}: {} allocations, equal", expected.counts.allocations);
        bpf::assert_back_to(before);
    }
}

#[test]
fn hits_are_counted_once_for_a_free_and_once_or_twice_for_a_call_that_gives_a_block() {
    const PAIRS: u64 = 1000;
    let program = programs::build("pairs.c", Variant::Default);
    for way in ways() {
        let scratch = Scratch::new();
        let options = ["--strict", "--attach-by", way];
        let pairs = PAIRS.to_string();
        run(&mut scratch.trace_program(&options, program.clone(), &[&pairs])).assert_code(0);
        let summary = scratch.report_json("summary");
        let (hits, calls) = (number(&summary, "probe_hits"), number(&summary, "allocations"));
        assert_eq!((calls, number(&summary, "frees")), (PAIRS, PAIRS), "by {way}");
        if way == "session" {
            // The first block is not in the thread's cache: it passes the place where others are told.
            assert!((2 * PAIRS..=3 * PAIRS).contains(&hits), "{hits}");
        } else {
            assert_eq!(hits, 3 * PAIRS, "by {way}");
        }
    }
}

#[test]
fn every_way_of_attaching_to_a_running_process_leaves_nothing_behind() {
    for way in ways() {
        let mut server = start("server.c", &["2", "1000", "1000"]);
        let pid = server.wait_ready();
        let before = bpf::held();
        let scratch = Scratch::new();
        let memscope = scratch.attach(&["--strict", "--attach-by", way], &[pid]);
        bpf::assert_more_than(&before);
        memscope.end_by(libc::SIGINT).assert_code(0);
        bpf::assert_back_to(before);
        server.signal(libc::SIGTERM);
        let (figures, status) = server.finish();
        assert!(status.success() && figures.number("damaged") == 0, "by {way}: {status}");
        let export = scratch.export();
        export.assert_complete();
        assert!(export.total("allocations") > 0, "by {way}");
    }
}

#[test]
fn where_callers_only_are_asked_for_the_counts_are_the_same_and_stacks_have_one_frame() {
    let (export, images) = trace_with_oracle_and(&["--stacks", "caller"], "mix.c", &["8", "3000"]);
    export.assert_complete();
    let expected = assert_equals_oracle(&export, 0, &images[0]);
    for site in export.list("sites") {
        assert_eq!(site["stack"], "caller_only", "{site}");
        assert_eq!(called_frames(site).len(), 1, "{site}");
    }
    let stacks = &export.0["stacks"];
    let calls = expected.counts.allocations + expected.counts.failed_allocations;
    assert_eq!(number(&stacks["by_reason"], "caller_only"), calls, "{stacks}");
    assert_eq!(number(stacks, "complete"), 0, "{stacks}");
    let names = export.list("sites").iter().flat_map(called_frames);
    let names: Vec<String> = names.filter_map(|frame| frame.function).collect();
    assert!(names.iter().any(|name| name == "work"), "{names:?}");
}
