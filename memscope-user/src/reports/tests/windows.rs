//! Reports of targets that were observed in windows of time only.

use super::{Detail, check, check_text};
use crate::reports::{Trust, View, testing::analysis};

const WINDOWS: &str = "
    !stack often complete often main
    !stack seldom complete seldom main
    !exact 7 40 2800
    every 1
    1 malloc 100 = 0x10 @often
    1 free 0x10
    1 malloc 100 = 0x10 @often
    window 20 0 10
    1 malloc 100 = 0x10 @often
    1 free 0x10
    1 malloc 100 = 0x10 @often
    window 20 90 10
    1 malloc 100 = 0x10 @often
    1 free 0x10
    1 malloc 100 = 0x10 @often
    1 malloc 4000 = 0x70 @seldom
    window 20 80 10 last";

#[test]
fn reports_say_what_was_observed_and_what_it_cost() {
    let analysis = analysis(WINDOWS);
    check(&analysis).unwrap();
    check_text(
        &View::Summary.report(&analysis, "r", None, Detail::Folded),
        "
        r
          process    server (pid 1001) /usr/bin/server, libc.so.6, was still running
          when       2023-11-14T22:13:20Z for 1.00 ms, until the target ended
          cost       15.8 % of the work (limit 5.0 %); 15.0 % observed in 3 windows
          requested  2.73 KiB in 40 calls, counted exactly in the windows
          allocated  ≈ 29.9 KiB (4.49–162) in ≈ 46 blocks; 0 reallocations, 0 failed
          freed      ≈ 1.95 KiB in ≈ 20 blocks; 43.5 % of allocations were temporary
          live       ≥ 4.00 KiB in ≥ 2 blocks at the end
          peak       ≥ 4.00 KiB in ≥ 2 blocks, 0 ns after the start

        Most live at the end
          ≥ 3.91 KiB  97.6 % in ≥ 1 block      seldom  seldom.c:3  [server]
            ≥ 100 B   2.4 % in ≥ 1 block      often  often.c:1  [server]
        Most allocated
          ≈ 26.0 KiB (3.91–733)  87.0 % in ≈ 6 blocks     seldom  seldom.c:3  [server]
          ≈ 3.91 KiB (3.86–4.81)  13.0 % in ≈ 40 blocks    often  often.c:1  [server]

        INCOMPLETE: 15.0 % of the work observed in 3 windows, sums are scaled by 6.7, live is a minimum; estimated from 7 sampled blocks; stacks: 100.0 % complete.",
    );
    check_text(
        &View::Leaks.report(&analysis, "r", Some(1), Detail::Folded),
        "
        Live at the end, ≥ 4.00 KiB in ≥ 2 blocks (2 sampled): the first 1 of 2 sites

          1. ≥ 3.91 KiB  97.6 % in ≥ 1 block (1 sampled), 1.00 ms old; none freed
              seldom  seldom.c:3  [server]
              main  main.c:2  [server]

        Blocks were followed to the end of their window only: there are at least these, and
        leaks are better looked for with --sample.

        Live is not lost: caches and pools are live too, and memscope follows no pointers to
        see which blocks the program can still reach. Old blocks of a growing site are suspects.

        INCOMPLETE: 15.0 % of the work observed in 3 windows, sums are scaled by 6.7, live is a minimum; estimated from 7 sampled blocks; stacks: 100.0 % complete.",
    );
}

#[test]
fn a_trace_with_gaps_is_not_complete_and_has_no_upper_bound_of_what_lives() {
    let analysis = analysis(WINDOWS);
    let trust = Trust::of(&analysis);
    assert!(!trust.complete);
    assert_eq!(trust.live_blocks_between, None);
    let budget = trust.budget.unwrap();
    assert_eq!((budget.windows, budget.limit_ppm, budget.observed_ppm), (3, 50_000, 150_000));
    // (30 + 3 × 0.5) / 200
    assert_eq!(budget.spent_ppm, Some(157_500));
    let all = analysis.totals;
    assert_eq!((all.allocations, all.frees, all.live_blocks), (46, 20, 2));
}

#[test]
fn a_trace_that_kept_its_budget_without_gaps_is_complete() {
    let text = "1 malloc 100 = 0x10 @a\nwindow 10 0 1 last";
    let analysis = analysis(text);
    check(&analysis).unwrap();
    let trust = Trust::of(&analysis);
    assert!(trust.complete, "{}", trust.sentence);
    assert_eq!(trust.budget.unwrap().observed_ppm, 1_000_000);
}

/// One window says nothing of how much windows differ: nothing bounds what was scaled from above.
#[test]
fn numbers_of_one_window_are_estimates_beside_what_was_seen() {
    let analysis = analysis(
        "!stack often complete often main
        every 1
        1 malloc 1000 = 0x10 @often
        1 free 0x10
        1 malloc 1000 = 0x10 @often
        window 20 180 10 last",
    );
    check(&analysis).unwrap();
    let text = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
    for line in [
        "  allocated  ≈ 37.1 KiB (≥ 1.95 KiB) in ≈ 38 blocks; 0 reallocations, 0 failed",
        "  freed      ≈ 18.6 KiB in ≈ 19 blocks; 50.0 % of allocations were temporary",
        "  live       ≥ 1000 B in ≥ 1 block at the end",
        "   ≥ 1000 B 100.0 % in ≥ 1 block      often  often.c:1  [server]",
        "  ≈ 37.1 KiB 100.0 % in ≈ 38 blocks    often  often.c:1  [server]",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    let text = View::Peak.report(&analysis, "r", None, Detail::Folded).text();
    assert!(text.starts_with("Live at the peak, ≥ 1000 B in ≥ 1 block, "), "{text}");
}
