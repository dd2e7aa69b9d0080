//! Reports of sampled blocks say that they are estimates, how good, and of how much.

use super::{Detail, check, check_text};
use crate::reports::{Estimate, View, testing::analysis};

/// 1/p of a block of 3000 bytes is 20.17, of one of 700,000 bytes 1.0000…
const SAMPLED: &str = "
    !stack small complete small main
    !stack large complete large main
    every 59000
    1 malloc 3000 = 0x10 @small
    1 malloc 3000 = 0x20 @small
    1 malloc 3000 = 0x30 @small
    1 malloc 3000 = 0x40 @small
    1 free 0x40
    1 malloc 700000 = 0x50 @large";

/// No block was drawn of those that live: of 59,000 bytes one is missed with probability 1/e, so more than 3.69 times
/// as many are in one of 40 cases.
#[test]
fn that_no_sampled_block_lives_is_no_proof_that_none_does() {
    let trace = "
        !stack small complete small main
        every 59000
        1 malloc 3000 = 0x10 @small
        1 free 0x10";
    let mut analysis = analysis(trace);
    analysis.capture.sampling_interval_bytes = Some(59_000);
    let summary = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
    assert!(
        summary.contains("  live       ≤ 213 KiB in 0 sampled blocks at the end\n"),
        "{summary}"
    );
    let leaks = View::Leaks.report(&analysis, "r", None, Detail::Folded).text();
    assert!(
        leaks.starts_with("Live at the end, ≤ 213 KiB in 0 sampled blocks: 0 sites\n"),
        "{leaks}"
    );
    let high = Estimate::of_all(&analysis).unwrap().live_bytes.high.unwrap();
    // 59,000 ln 40, but for what the deviate is off by.
    assert!(high.abs_diff(217_644) < 200, "{high}");
}

#[test]
fn sites_have_bounds() {
    let analysis = analysis(SAMPLED);
    check(&analysis).unwrap();
    check_text(
        &View::Sites.report(&analysis, "r", None, Detail::Folded),
        "
        Sites by bytes live at the end: 2 sites

          1. ≈ 684 KiB live  79.4 % in 1 block; allocated ≈ 684 KiB in ≈ 1 block
              large  large.c:3  [server]
              main  main.c:2  [server]

          2. ≈ 177 KiB (12.4–789) live  20.6 % in ≈ 60 blocks; allocated ≈ 236 KiB in ≈ 80 blocks
              small  small.c:1  [server]
              main  main.c:2  [server]

        Complete: all 6 events recorded, 0 lost; estimated from 5 sampled blocks; stacks: 100.0 % complete.",
    );
    check_text(
        &View::Allocated.report(&analysis, "r", Some(1), Detail::Folded),
        "
        Sites by bytes allocated: the first 1 of 2 sites

          1. ≈ 684 KiB allocated  74.3 % in 1 block; ≈ 684 KiB live; none freed
              large  large.c:3  [server]
              main  main.c:2  [server]

        Complete: all 6 events recorded, 0 lost; estimated from 5 sampled blocks; stacks: 100.0 % complete.",
    );
}

#[test]
fn leaks_say_how_many_blocks_they_rest_on() {
    let analysis = analysis(SAMPLED);
    check_text(
        &View::Leaks.report(&analysis, "r", None, Detail::Folded),
        "
        Live at the end, ≈ 861 KiB (722–1193) in ≈ 61 blocks (4 sampled): 2 sites

          1. ≈ 684 KiB  79.4 % in 1 block (1 sampled), 1.00 ms old; none freed
              large  large.c:3  [server]
              main  main.c:2  [server]

          2. ≈ 177 KiB (12.4–789)  20.6 % in ≈ 60 blocks (3 sampled), 1.00 ms old; ≈ 20 freed
              small  small.c:1  [server]
              main  main.c:2  [server]

        Live is not lost: caches and pools are live too, and memscope follows no pointers to
        see which blocks the program can still reach. Old blocks of a growing site are suspects.

        Complete: all 6 events recorded, 0 lost; estimated from 5 sampled blocks; stacks: 100.0 % complete.",
    );
}

#[test]
fn the_peak_and_the_summary_say_that_they_are_estimates() {
    let analysis = analysis(SAMPLED);
    check_text(
        &View::Peak.report(&analysis, "r", Some(1), Detail::Folded),
        "
        Live at the peak, ≈ 861 KiB in ≈ 61 blocks, 0 ns after the start: the first 1 of 2 sites

          1. ≈ 684 KiB  79.4 % in ≈ 1 block; ≈ 684 KiB live at the end
              large  large.c:3  [server]
              main  main.c:2  [server]

        Complete: all 6 events recorded, 0 lost; estimated from 5 sampled blocks; stacks: 100.0 % complete.",
    );
    check_text(
        &View::Summary.report(&analysis, "server.memscope", None, Detail::Folded),
        "
        server.memscope
          process    server (pid 1001) /usr/bin/server, libc.so.6, was still running
          when       2023-11-14T22:13:20Z for 1.00 ms, until the target ended
          allocated  ≈ 920 KiB (751–1279) in ≈ 81 blocks; 0 reallocations, 0 failed
          freed      ≈ 59.1 KiB in ≈ 20 blocks; 24.7 % of allocations were temporary
          live       ≈ 861 KiB (722–1193) in ≈ 61 blocks at the end
          peak       ≈ 861 KiB in ≈ 61 blocks, 0 ns after the start

        Most live at the end
          ≈ 684 KiB  79.4 % in 1 block        large  large.c:3  [server]
          ≈ 177 KiB (12.4–789)  20.6 % in ≈ 60 blocks    small  small.c:1  [server]
        Most allocated
          ≈ 684 KiB  74.3 % in 1 block        large  large.c:3  [server]
          ≈ 236 KiB (26.2–892)  25.7 % in ≈ 80 blocks    small  small.c:1  [server]

        Complete: all 6 events recorded, 0 lost; estimated from 5 sampled blocks; stacks: 100.0 % complete.",
    );
}
