//! A row for each image of a process.

use super::{check, check_text};
use crate::{
    model::{Ending, EndingReason},
    reports::{
        Detail, ProcessSums, Report, View, left_running,
        testing::{ENDED_AT_NS, analysis, analysis_of, items, regular_end},
    },
    store::RecordingEnd,
};

/// A server forks a worker, which frees one of its blocks, and becomes another program.
const FORKED: &str = "
    !process 2 server
    !process 3 worker
    !exit 1 0
    !exec 2
    1 malloc 1000 = 0x10 @a
    1 malloc 200 = 0x20 @a
    fork 1 2
    2:7 free 0x10
    2:7 malloc 30 = 0x30 @b
    2:7 free 0x30
    3:7 malloc 4000 = 0x40 @c
    3:7 malloc 5 = null @c
    1 free 0x20";

#[test]
fn images_are_ordered_by_what_they_have_allocated() {
    let analysis = analysis(FORKED);
    check(&analysis).unwrap();
    let Report::Processes(report) = View::Processes.report(&analysis, "", None, Detail::Folded)
    else {
        panic!("another report");
    };
    let known: Vec<_> = report
        .rows
        .iter()
        .map(|row| (row.process, row.pid, row.parent, row.end, row.exit_status))
        .collect();
    assert_eq!(
        known,
        [
            (3, 1003, None, None, None),
            (1, 1001, None, Some("exit"), Some(0)),
            (2, 1002, Some(1), Some("exec"), None)
        ]
    );
    let sums = [
        // Allocations, frees, failed, temporary, live.
        (1, 4000, 0, 0, 1, 0, 1, 4000),
        (2, 1200, 1, 200, 0, 1, 1, 1000),
        (1, 30, 1, 30, 0, 1, 0, 0),
    ];
    for (row, expected) in report.rows.iter().zip(sums) {
        let ProcessSums {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            failed_allocations,
            temporary_allocations,
            live_blocks,
            live_bytes,
        } = row.sums;
        let found = (
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            failed_allocations,
            temporary_allocations,
            live_blocks,
            live_bytes,
        );
        assert_eq!(found, expected, "process {}", row.process);
    }
    check_text(
        &Report::Processes(report),
        "
        Processes by bytes allocated: 3, one for each program that a process ran

             pid  allocated       blocks       live       blocks  program
            1003   3.91 KiB            1   3.91 KiB            1  worker, was still running
            1001   1.17 KiB            2     1000 B            1  server, exited with 0
            1002       30 B            1        0 B            0  server, replaced itself, forked by 1001

        Forked processes freed 1 block of their parents, which are in no other number.

        Complete: all 8 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn a_parent_that_is_not_shown_is_named() {
    let analysis = analysis(
        "!process 2 worker
         fork 1 2
         2:7 malloc 8 = 0x10 @a",
    );
    let told = View::Processes.report(&analysis, "", Some(1), Detail::Folded).text();
    assert!(told.contains("the first 1 of 2"), "{told}");
    assert!(told.contains("worker, was still running, forked by 1001\n"), "{told}");
}

/// Else its 0 bytes would be taken for what it did.
#[test]
fn a_process_that_was_probed_late_is_marked() {
    let analysis = analysis("!probed-late");
    let told = View::Processes.report(&analysis, "", None, Detail::Folded).text();
    assert!(told.contains("server, probed late, was still running\n"), "{told}");
}

#[test]
fn names_of_processes_are_harmless() {
    let mut items = items("1 malloc 8 = 0x10 @a");
    let Some(crate::model::Item::Process(process)) = items.first_mut() else { panic!("none") };
    process.comm = "a\x1b[2J\nb".to_owned();
    let analysis = analysis_of(&items, regular_end());
    let told = View::Processes.report(&analysis, "", None, Detail::Folded).text();
    assert!(!told.contains(|character: char| character.is_control() && character != '\n'));
    assert_eq!(told.lines().count(), 6, "{told}");
}

/// Two workers and another program allocate at the same places.
const WORKERS: &str = "
    !process 2 worker
    !process 3 worker
    !process 4 other
    2:7 malloc 1000 = 0x10 @a
    3:7 malloc 200 = 0x10 @a
    4:7 malloc 30 = 0x10 @a
    2:7 free 0x10
    3:7 malloc 4 = 0x20 @b";

#[test]
fn sites_of_processes_that_run_the_same_program_are_one_for_readers() {
    let analysis = analysis(WORKERS);
    let shown = |detail| match View::Allocated.report(&analysis, "", None, detail) {
        Report::Sites(sites) => sites
            .rows
            .iter()
            .map(|row| {
                (row.process.process, row.process_count, row.allocated_bytes, row.live_bytes)
            })
            .collect::<Vec<_>>(),
        _ => panic!("another report"),
    };
    assert_eq!(shown(Detail::Folded), [(2, 2, 1200, 200), (4, 1, 30, 30), (3, 1, 4, 4)]);
    assert_eq!(
        shown(Detail::All),
        [(2, 1, 1000, 0), (3, 1, 200, 200), (4, 1, 30, 30), (3, 1, 4, 4)]
    );
    let text = View::Allocated.report(&analysis, "", None, Detail::Folded).text();
    assert!(text.contains("in worker (2 processes)"), "{text}");
    assert!(text.contains("in other (pid 1004)"), "{text}");
}

#[test]
fn processes_that_a_command_leaves_behind_are_told() {
    let daemon = |more: &str| {
        analysis(&format!("!process 2 sh\n!process 3 daemon\n!exit 1 0\n!exec 2\n{more}"))
    };
    let summary = |text: &str| {
        let analysis = daemon(text);
        View::Summary.report(&analysis, "", None, Detail::Folded).text()
    };
    let told = summary("");
    assert!(
        told.contains("until the target ended\n             1 process was still running, and observed until then\n"),
        "{told}"
    );
    let told = summary("!process 4 daemon");
    assert!(told.contains("\n             2 processes were still running, and "), "{told}");
    assert!(!summary("!exit 3 0").contains("and observed until"), "all have ended");
    let mut interrupted = daemon("");
    interrupted.end = RecordingEnd::Complete(Ending {
        ended_at_ns: ENDED_AT_NS,
        reason: EndingReason::Interrupted,
    });
    assert_eq!(left_running(&interrupted).len(), 0, "nobody said that it was over");
}
