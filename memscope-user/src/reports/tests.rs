//! The reports on small recordings, with exact numbers and exact text.

use super::{
    Detail, Report, View, check,
    testing::{ENDED_AT_NS, analysis, analysis_of, items},
};
use crate::{
    model::{Event, Item},
    store::RecordingEnd,
};

mod mappings;
mod memory;
mod mismatched;
mod pages;
mod processes;
mod sampling;
mod threads;
mod trust;
mod windows;

/// 3 sites: `leak` keeps 2 of 3 blocks, `cache` keeps 1, `parse` frees all.
const SERVER: &str = "
    !stack leak complete operator_new(unsigned_long) keep<handle handle main
    !stack cache complete ? main
    !stack parse complete parse main
    !exit 1 0
    +1990
    1 malloc 1000 = 0x10 @leak
    1 malloc 3000 = 0x20 @leak
    1 malloc 4000 = 0x30 @leak
    1 free 0x30
    2 malloc 500 = 0x40 @cache
    1 malloc 2000 = 0x50 @parse
    2 free 0x50
    1 malloc 100 = 0x60 @parse
    1 free 0x60";

#[track_caller]
fn check_text(report: &Report<'_>, expected: &str) {
    let text = report.text();
    let expected =
        expected.lines().skip(1).map(|line| line.strip_prefix("        ").unwrap_or(line));
    let expected = expected.collect::<Vec<_>>().join("\n");
    assert_eq!(text.trim_end(), expected.trim_end(), "\n{text}");
    assert!(
        text.lines().all(|line| line.starts_with("Complete")
            || line.starts_with("INCOMPLETE")
            || line.chars().count() <= 100),
        "{text}"
    );
    assert!(!text.contains(|character: char| character.is_control() && character != '\n'));
}

#[test]
fn sites_by_live_bytes() {
    let analysis = analysis(SERVER);
    check(&analysis).unwrap();
    check_text(
        &View::Sites.report(&analysis, "r", Some(2), Detail::Folded),
        "
        Sites by bytes live at the end: the first 2 of 3 sites

          1.  3.91 KiB live  88.9 % in 2 blocks; allocated 7.81 KiB in 3 blocks
              keep  keep.c:2  [server]  (inlined)
              handle  handle.c:2  [server]
              handle  handle.c:3  [server]
              main  main.c:4  [server]

          2.     500 B live  11.1 % in 1 block; allocated 500 B in 1 block
              server+0x500
              main  main.c:4  [server]

        Functions that only hand requests on to the allocator are folded (--show-wrappers).

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn sites_by_allocated_bytes() {
    let analysis = analysis(SERVER);
    check_text(
        &View::Allocated.report(&analysis, "r", Some(1), Detail::Folded),
        "
        Sites by bytes allocated: the first 1 of 3 sites

          1.  7.81 KiB allocated  75.5 % in 3 blocks; 3.91 KiB live; half lived ≤ 10 ns
              keep  keep.c:2  [server]  (inlined)
              handle  handle.c:2  [server]
              handle  handle.c:3  [server]
              main  main.c:4  [server]

        Functions that only hand requests on to the allocator are folded (--show-wrappers).

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn sites_by_temporary_allocations() {
    let analysis = analysis(SERVER);
    check_text(
        &View::Temporary.report(&analysis, "r", None, Detail::Folded),
        "
        Sites by temporary allocations (freed with no other allocation in between): 2 sites

          1.         1 temporary  50.0 %, 33.3 % of the 3 allocations here; half lived ≤ 10 ns
              keep  keep.c:2  [server]  (inlined)
              handle  handle.c:2  [server]
              handle  handle.c:3  [server]
              main  main.c:4  [server]

          2.         1 temporary  50.0 %, 50.0 % of the 2 allocations here; half lived ≤ 10 ns
              parse  parse.c:6  [server]
              main  main.c:4  [server]

        Functions that only hand requests on to the allocator are folded (--show-wrappers).

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn leaks() {
    let analysis = analysis(SERVER);
    check_text(
        &View::Leaks.report(&analysis, "r", None, Detail::Folded),
        "
        Live at the end, 4.39 KiB in 3 blocks: 2 sites

          1.  3.91 KiB  88.9 % in 2 blocks, 999 µs old; 1 freed
              keep  keep.c:2  [server]  (inlined)
              handle  handle.c:2  [server]
              handle  handle.c:3  [server]
              main  main.c:4  [server]

          2.     500 B  11.1 % in 1 block, 999 µs old; none freed
              server+0x500
              main  main.c:4  [server]

        Live is not lost: caches and pools are live too, and memscope follows no pointers to
        see which blocks the program can still reach. Old blocks of a growing site are suspects.

        Functions that only hand requests on to the allocator are folded (--show-wrappers).

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn peak() {
    let analysis = analysis(SERVER);
    check_text(
        &View::Peak.report(&analysis, "r", None, Detail::Folded),
        "
        Live at the peak, 7.81 KiB in 3 blocks, 1.02 µs after the start: 1 site

          1.  7.81 KiB 100.0 % in 3 blocks; 3.91 KiB live at the end
              keep  keep.c:2  [server]  (inlined)
              handle  handle.c:2  [server]
              handle  handle.c:3  [server]
              main  main.c:4  [server]

        Functions that only hand requests on to the allocator are folded (--show-wrappers).

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn summary() {
    let analysis = analysis(SERVER);
    check_text(
        &View::Summary.report(&analysis, "server.memscope", None, Detail::Folded),
        "
        server.memscope
          process    server (pid 1001) /usr/bin/server, libc.so.6, exited with 0
          when       2023-11-14T22:13:20Z for 1.00 ms, until the target ended
          allocated  10.4 KiB in 6 blocks; 0 reallocations, 0 failed
          freed      5.96 KiB in 3 blocks; 33.3 % of allocations were temporary
          live       4.39 KiB in 3 blocks at the end
          peak       7.81 KiB in 3 blocks, 1.02 µs after the start

        Most live at the end
           3.91 KiB  88.9 % in 2 blocks       keep  keep.c:2  [server]  (inlined)
              500 B  11.1 % in 1 block        server+0x500
        Most allocated
           7.81 KiB  75.5 % in 3 blocks       keep  keep.c:2  [server]  (inlined)
           2.05 KiB  19.8 % in 2 blocks       parse  parse.c:6  [server]
              500 B   4.7 % in 1 block        server+0x500

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn the_summary_fits_a_terminal_at_its_worst() {
    let long = "averylongfunctionname".repeat(20);
    let mut text = String::from(
        "!late\n!process 2 second\n!process 3 third\n!process 4 fourth\n!lost ring_full_free 123456\n!lost thread_table_full 7\n",
    );
    for (name, outcome) in [
        ("a", "depth_limit"),
        ("b", "frame_pointer_broken"),
        ("c", "with_frame_pointers"),
        ("d", "complete"),
    ] {
        text.push_str(&format!("!stack {name} {outcome} {long}{name} main\n"));
    }
    for process in 1..5 {
        text.push_str(&format!(
            "{process}:1 malloc 123456789 = 0x10 @{}\n",
            ["a", "b", "c", "d"][process - 1]
        ));
    }
    text.push_str("1:1 malloc 5 = 0x10 @a\n1 free 0x99\nmemory 1 anon 123456789 brk 5\nlost 9");
    let mut analysis = analysis_of(&items(&text), RecordingEnd::Truncated);
    analysis.damage_count = 3;
    let shown = View::Summary.report(&analysis, &"path/".repeat(60), None, Detail::Folded).text();
    let rows: usize = shown.lines().map(|line| line.chars().count().div_ceil(80).max(1)).sum();
    assert!(rows <= 24, "{rows} rows:\n{shown}");
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("INCOMPLETE: "), "{last}");
    assert!(
        shown.lines().filter(|line| *line != last).all(|line| line.chars().count() <= 80),
        "{shown}"
    );
}

#[test]
fn nothing_recorded_shows_nothing() {
    let analysis = analysis("");
    check(&analysis).unwrap();
    for view in View::ALL {
        let report = view.report(&analysis, "r", None, Detail::Folded);
        let text = report.text();
        assert!(text.trim_end().ends_with("Complete: all 0 events recorded, 0 lost."), "{text}");
        assert!(!text.contains(" 1. "), "{view:?}: {text}");
        serde_json::to_string(&report).unwrap();
    }
    let summary = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
    assert!(summary.contains("No allocation was recorded; the probes had 0 hits."), "{summary}");
}

#[test]
fn several_processes_are_told_apart() {
    let analysis = analysis("!process 2 worker\n1 malloc 1 = 0x10 @a\n2:7 malloc 2 = 0x10 @b");
    let text = View::Sites.report(&analysis, "r", None, Detail::Folded).text();
    assert!(text.contains("\n      in worker (pid 1002)\n"), "{text}");
    assert!(text.contains("\n      in server (pid 1001)\n"), "{text}");
}

#[test]
fn long_chains_are_folded_and_broken_ones_marked() {
    let analysis = analysis(
        "!stack a depth_limit a b c d e f g h i j k\n1 malloc 1 = 0x10 @a\n1 malloc 1 = 0x20 @b\n!stack b frames_lost",
    );
    let text = View::Sites.report(&analysis, "r", None, Detail::Folded).text();
    assert!(
        text.contains("      h  h.c:8  [server]\n      … 3 more  [callers unknown: depth limit]\n"),
        "{text}"
    );
    assert!(text.contains("\n      [frames lost]\n"), "{text}");
}

#[test]
fn what_the_recording_does_not_define_is_unknown_and_no_name() {
    let items = items("7:1 malloc 1 = 0x10 @a");
    let only: Vec<_> = items.into_iter().filter(|item| matches!(item, Item::Event(_))).collect();
    let analysis = analysis_of(&only, RecordingEnd::Truncated);
    let Report::Sites(sites) = View::Sites.report(&analysis, "r", None, Detail::Folded) else {
        panic!()
    };
    let row = &sites.rows[0];
    assert_eq!((row.process.pid, row.stack, row.frames.len()), (None, "frames_lost", 0));
    assert_eq!(row.process.text(), "[unknown process 7]");
}

#[test]
fn code_outside_any_file_has_an_address() {
    let analysis = analysis("!stack a complete ?? main\n1 malloc 1 = 0x10 @a");
    let text = View::Sites.report(&analysis, "r", None, Detail::Folded).text();
    assert!(text.contains("\n      [unknown]+0x7fff0000\n"), "{text}");
}

#[test]
fn foreign_names_do_not_reach_the_terminal() {
    let mut items = items("!process 2 x\n1 malloc 1 = 0x10 @a");
    for item in &mut items {
        match item {
            Item::Process(process) => {
                process.comm = "\x1b[2Jevil\n".to_owned();
                process.exe = "/\x07".to_owned();
                process.allocators = vec!["\x1b]0;x".to_owned()];
            }
            Item::Module(module) => module.path = "/a\rb".to_owned(),
            Item::Symbols(symbols) => symbols.functions[0].name = "f\x1b[31m".to_owned(),
            _ => {}
        }
    }
    let analysis = analysis_of(&items, super::testing::regular_end());
    for view in View::ALL {
        let text = view.report(&analysis, "\x1b[0m.memscope", None, Detail::Folded).text();
        assert!(
            !text.contains(|character: char| character.is_control() && character != '\n'),
            "{text:?}"
        );
    }
}

#[test]
fn json_of_a_report_names_its_view_and_units() {
    let analysis = analysis(SERVER);
    let report = View::Leaks.report(&analysis, "r", Some(1), Detail::Folded);
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["view"], "leaks");
    assert_eq!(json["live_bytes"], 4500);
    assert_eq!(json["site_count"], 2);
    assert_eq!(json["rows"].as_array().unwrap().len(), 1);
    let row = &json["rows"][0];
    assert_eq!(row["live_bytes"], 4000);
    assert_eq!(row["oldest_live_age_ns"], ENDED_AT_NS - 2000);
    assert_eq!(row["frames"][0]["function"], "operator new(unsigned long)");
    assert_eq!(row["frames"][0]["offset"], "0x100");
    assert_eq!(json["trust"]["complete"], true);
    let sites = View::Temporary.report(&analysis, "r", None, Detail::Folded);
    assert_eq!(serde_json::to_value(&sites).unwrap()["order"], "temporary");
}

#[test]
fn duration_of_a_cut_recording_reaches_to_its_last_event() {
    let items = items("+4990\n1 malloc 1 = 0x10 @a");
    let last = items.iter().rev().find_map(|item| match item {
        Item::Event(event) => Some(Event::time_ns(event)),
        _ => None,
    });
    assert_eq!(last, Some(5000));
    assert_eq!(analysis_of(&items, RecordingEnd::Truncated).duration_ns(), 4000);
}

/// Three sites that differ in nothing but what stands between `keep` and the allocator,
/// and one that differs in more.
const WRAPPED: &str = "
    !stack one complete operator_new(unsigned_long) keep main
    !stack two complete operator_new(unsigned_long) operator_new[](unsigned_long) keep main
    !stack three complete keep main
    !stack cut depth_limit keep main
    !exit 1 0
    +1990
    1 malloc 1000 = 0x10 @one
    1 malloc 200 = 0x20 @two
    1 free 0x20
    1 malloc 30 = 0x30 @three
    2 malloc 4 = 0x40 @three
    1 free 0x40
    1 malloc 5 = 0x50 @cut";

#[test]
fn sites_that_differ_in_wrappers_only_are_one_where_wrappers_are_folded() {
    let analysis = analysis(WRAPPED);
    check(&analysis).unwrap();
    let Report::Sites(folded) = View::Sites.report(&analysis, "r", None, Detail::Folded) else {
        panic!()
    };
    assert_eq!((folded.site_count, folded.rows.len()), (2, 2));
    let row = &folded.rows[0];
    assert_eq!((row.site, row.allocations, row.allocated_bytes), (0, 4, 1234));
    assert_eq!((row.frees, row.freed_bytes, row.live_blocks, row.live_bytes), (2, 204, 2, 1030));
    assert_eq!((row.at_peak_blocks, row.at_peak_bytes), (2, 1200));
    let lifetimes = row.lifetime_ns.unwrap();
    assert_eq!((lifetimes.min, lifetimes.max), (10, 10));
    let age = |began_ns: u64| Some(ENDED_AT_NS - began_ns);
    assert_eq!((row.oldest_live_age_ns, row.newest_live_age_ns), (age(2000), age(2030)));
    assert_eq!((folded.rows[1].site, folded.rows[1].live_bytes), (3, 5));
    let text = View::Sites.report(&analysis, "r", None, Detail::Folded).text();
    assert!(!text.contains("operator new") && text.contains("--show-wrappers"), "{text}");

    let Report::Sites(shown) = View::Sites.report(&analysis, "r", None, Detail::All) else {
        panic!()
    };
    assert_eq!(shown.site_count, 4);
    for (sum, total) in [
        (shown.rows.iter().map(|row| row.live_bytes).sum::<u64>(), folded.live_bytes),
        (folded.rows.iter().map(|row| row.live_bytes).sum(), analysis.totals.live_bytes),
        (folded.rows.iter().map(|row| row.allocations).sum(), analysis.totals.allocations),
        (folded.rows.iter().map(|row| row.at_peak_bytes).sum(), analysis.totals.peak_live_bytes),
    ] {
        assert_eq!(sum, total);
    }
    let text = View::Sites.report(&analysis, "r", None, Detail::All).text();
    assert!(text.contains("operator new[](unsigned long)") && !text.contains("--show-wrappers"));
}

#[test]
fn chains_reach_the_program_however_much_of_its_library_is_before() {
    let analysis = analysis(
        "!stack map complete alloc::alloc::alloc hashbrown::a hashbrown::b hashbrown::c \
         hashbrown::d hashbrown::e hashbrown::f hashbrown::g hashbrown::h \
         std::collections::HashMap::insert fill run serve start main
         1 malloc 100 = 0x10 @map",
    );
    let text = View::Sites.report(&analysis, "r", None, Detail::Folded).text();
    let shown: Vec<&str> = text.lines().skip(3).take(10).map(|line| line.trim()).collect();
    assert_eq!(shown[0], "… 5 functions of the language's library", "{text}");
    assert!(shown[1].starts_with("hashbrown::f "), "{text}");
    assert!(shown[4].starts_with("std::collections::HashMap::insert "), "{text}");
    assert!(shown[5].starts_with("fill ") && shown[8].starts_with("start "), "{text}");
    assert_eq!(shown[9], "… 1 more", "{text}");
    // A reader who asks for all of it gets it from its beginning.
    let text = View::Sites.report(&analysis, "r", None, Detail::All).text();
    assert!(text.lines().nth(3).is_some_and(|line| line.contains("alloc::alloc::alloc")), "{text}");
}
