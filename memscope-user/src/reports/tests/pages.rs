//! Page faults: sums by call chain, and what is said of a recording of them.

use super::{check, check_text};
use crate::model::{Event, Item, ProcessId};
use crate::reports::{
    Detail, PageRow, Report, View,
    testing::{FAULTS, analysis, analysis_of, items, regular_end},
};

fn report(text: &str, view: View) -> String {
    let analysis = analysis(text);
    check(&analysis).unwrap();
    view.report(&analysis, "pages.mscope", Some(10), Detail::Folded).text()
}

#[test]
fn chains_are_ordered_by_what_became_resident() {
    let analysis = analysis(FAULTS);
    let Report::Pages(pages) = View::Pages.report(&analysis, "", None, Detail::Folded) else {
        panic!("another report");
    };
    assert_eq!((pages.events, pages.sums.faults, pages.sums.major_faults), ("pages", 5, 1));
    assert_eq!(pages.sums.resident_bytes, (2 << 20) + 4096 + 65_536 + 4096);
    assert_eq!((pages.elsewhere_bytes, pages.gone_bytes), (8192, 4096));
    let rows: Vec<_> = pages
        .rows
        .iter()
        .map(|PageRow { sums, .. }| {
            (sums.faults, sums.major_faults, sums.anonymous_bytes, sums.file_bytes)
        })
        .collect();
    assert_eq!(rows, [(2, 0, (2 << 20) + 4096, 0), (3, 1, 0, 65_536)]);
    assert!(pages.trust.complete, "{}", pages.trust.sentence);
    assert_eq!(pages.trust.live_blocks_between, None);
    check_text(
        &Report::Pages(pages),
        "
        Made resident by page faults, 2.07 MiB in 5 faults: 2 sites
        8.00 KiB became resident otherwise; 4.00 KiB went while the program ran

          1.  2.00 MiB  96.8 % in 2 page faults; 2.00 MiB anonymous
              fill  fill.c:1  [server]
              main  main.c:2  [server]

          2.  68.0 KiB   3.2 % in 3 page faults, 1 major; 64.0 KiB of files, 4.00 KiB shared
              read  read.c:3  [server]
              main  main.c:2  [server]

        Complete: all 5 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn the_summary_of_page_faults_does_not_speak_of_blocks() {
    let summary = report(FAULTS, View::Summary);
    assert!(summary.contains("allocations were not observed"), "{summary}");
    for word in ["live", "freed", "peak", "block", "allocator"] {
        assert!(!summary.contains(word), "{word} in: {summary}");
    }
}

#[test]
fn a_recording_of_allocations_says_that_page_faults_were_not_observed() {
    let told = report("1 malloc 100 = 0x10 @leak", View::Pages);
    assert!(told.starts_with("Page faults were not observed"), "{told}");
}

#[test]
fn views_of_blocks_name_the_view_of_page_faults() {
    for view in [
        View::Sites,
        View::Allocated,
        View::Temporary,
        View::Leaks,
        View::Peak,
        View::Mismatched,
        View::Threads,
    ] {
        let told = report(FAULTS, view);
        let expected = "Allocations were not observed, but page faults; `--view pages` shows these.\n\nComplete: ";
        assert!(told.starts_with(expected), "{view:?}: {told}");
    }
}

#[test]
fn processes_are_told_by_what_became_resident() {
    let mut items = items(&format!("{FAULTS}\n!process 2 worker\n!exec 2"));
    let faults = items.iter_mut().filter_map(|item| match item {
        Item::Event(Event::PageFault { process, .. }) => Some(process),
        _ => None,
    });
    // All but the second are another process's.
    for (_, process) in faults.enumerate().filter(|(number, _)| *number != 1) {
        *process = ProcessId(2);
    }
    let analysis = analysis_of(&items, regular_end());
    check(&analysis).unwrap();
    check_text(
        &View::Processes.report(&analysis, "", None, Detail::Folded),
        "
        Processes by bytes made resident by page faults: 2, one for each program that a process ran

             pid   resident       anon       file      shmem       faults  program
            1002   2.01 MiB   2.00 MiB        0 B   4.00 KiB            4  worker, replaced itself
            1001   64.0 KiB        0 B   64.0 KiB        0 B            1  server, exited with 0

        Complete: all 5 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}
