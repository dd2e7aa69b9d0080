//! Blocks freed by another allocator than their own: which, and what is said if there are none.

use super::{check, check_text};
use crate::{
    reports::{
        Detail, View,
        testing::{MISMATCHED, analysis, analysis_of, items, regular_end},
    },
    store::RecordingEnd,
};

#[test]
fn they_are_shown_by_call_chain_and_functions() {
    let analysis = analysis(MISMATCHED);
    check(&analysis).unwrap();
    check_text(
        &View::Mismatched.report(&analysis, "", Some(10), Detail::Folded),
        "
        Freed by another allocator than their own, 3 times: 2 sites

          1. 2 times, 300 B: allocated by malloc [server], freed by pool_free [server]
              keep  keep.c:1  [server]
              main  main.c:2  [server]

          2. 1 time, 50 B: allocated by malloc [server], freed by pool_resize [server]
              parse  parse.c:3  [server]
              main  main.c:2  [server]

        Only what is certain is shown: of allocators that call each other, and of those that
        nobody has named (--allocator), it is not known whose a block is.

        Complete: all 9 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
    let summary = View::Summary.report(&analysis, "", None, Detail::Folded).text();
    let line = "\n  mismatched 3 frees by another allocator than the block's (--view mismatched)\n";
    assert!(summary.contains(line), "{summary}");
    let rows = &analysis.mismatches;
    let shown = View::Mismatched.report(&analysis, "", Some(1), Detail::Folded).text();
    assert!(rows.len() == 2 && shown.contains("the first 1 of 2 sites"), "{shown}");
}

#[test]
fn where_something_is_missing_nothing_is_known() {
    let told = |analysis: &crate::reports::Analysis| {
        check(analysis).unwrap();
        let summary = View::Summary.report(analysis, "", None, Detail::Folded).text();
        assert_eq!(summary.contains("mismatched"), !analysis.mismatches.is_empty(), "{summary}");
        analysis.totals.mismatched_frees
    };
    // A loss that no marker has told.
    assert_eq!(told(&analysis(&format!("!lost ring_full_free 1{MISMATCHED}"))), 0);
    let lost = format!("!lost ring_full_free 1\nlost 1{MISMATCHED}");
    assert_eq!(told(&analysis(&lost)), 3, "before all of it");
    let cut = items(MISMATCHED);
    assert_eq!(told(&analysis_of(&cut, RecordingEnd::Truncated)), 3);
    assert_eq!(told(&analysis_of(&cut[..cut.len() - 4], regular_end())), 2);
}
