//! What is mapped by system calls: by call chain, and in the summary.

use super::{check, check_text};
use crate::reports::{
    Detail, Report, View,
    testing::{MAPPED, analysis},
};

#[test]
fn chains_are_ordered_by_what_is_mapped_at_the_end() {
    let analysis = analysis(MAPPED);
    check(&analysis).unwrap();
    let Report::Mappings(mappings) = View::Mappings.report(&analysis, "", None, Detail::Folded)
    else {
        panic!("another report");
    };
    assert_eq!(mappings.totals.unknown_unmapped_bytes, 2 * 4096);
    let sums = mappings.totals.sums;
    assert_eq!(sums.mapped_bytes, sums.live_bytes + sums.unmapped_bytes);
    let rows: Vec<_> = mappings
        .rows
        .iter()
        .map(|row| (row.kind, row.by, row.allocator, row.sums.live_mappings))
        .collect();
    assert_eq!(
        rows,
        [
            ("anonymous", "program", None, 3),
            ("anonymous", "allocator", Some("malloc"), 1),
            ("file", "program", None, 1)
        ]
    );
    check_text(
        &Report::Mappings(mappings),
        "
        Mapped at the end, 732 KiB of 932 KiB in 4 calls: 3 sites
        800 KiB at most, 2.00 ms after the start
        8.00 KiB unmapped that nobody was seen to map
        1 call failed
        What is mapped is address space; it takes memory where it is touched. What allocators map, they make
        blocks of: that is in the other views too.

          1.   600 KiB  82.0 % in 3 pieces; 800 KiB in 2 calls; anonymous
              mmap  mmap.c:1  [server]
              arena  arena.c:2  [server]
              main  main.c:3  [server]

          2.   100 KiB  13.7 % in 1 piece; 100 KiB in 1 call; anonymous, by malloc
              mmap  mmap.c:1  [server]
              arena  arena.c:2  [server]
              main  main.c:3  [server]

          3.  32.0 KiB   4.4 % in 1 piece; 32.0 KiB in 1 call; of files; 1 call failed
              mmap  mmap.c:1  [server]
              load  load.c:4  [server]
              main  main.c:3  [server]

        Complete: all 8 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
}

#[test]
fn the_summary_tells_mapped_memory_by_who_wanted_it() {
    let text = |recording: &str| {
        let analysis = analysis(recording);
        View::Summary.report(&analysis, "r", None, Detail::Folded).text()
    };
    let summary = text(MAPPED);
    let expected = "  mapped     732 KiB at the end: 100 KiB by allocators, 600 KiB by the program, 32.0 KiB of files\n";
    assert!(summary.contains(expected), "{summary}");
    assert!(!text("1 malloc 100 = 0x10 @a").contains("mapped"));
}

#[test]
fn a_recording_without_mappings_says_that_they_were_not_observed() {
    let analysis = analysis("1 malloc 100 = 0x10 @a");
    let text = View::Mappings.report(&analysis, "r", None, Detail::Folded).text();
    assert!(text.starts_with("What is mapped by system calls was not observed"), "{text}");
    assert!(text.contains("--mappings"), "{text}");
}
