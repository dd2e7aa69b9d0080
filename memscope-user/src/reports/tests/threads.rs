//! A row for each thread.

use super::{check, check_text};
use crate::reports::{
    Detail, Report, View,
    testing::{analysis, analysis_of, items, regular_end},
};

/// A pool of two threads, one of which has a name, and another process.
const POOL: &str = "
    !process 2 other
    !thread-name 1 8 compressor
    !thread-name 2 1 own
    1 malloc 1000 = 0x10 @a
    8 malloc 5000 = 0x20 @a
    8 free 0x10
    2:1 malloc 30 = 0x10 @a";

#[test]
fn threads_are_told_by_name_and_by_what_they_have_allocated() {
    let analysis = analysis(POOL);
    check(&analysis).unwrap();
    check_text(
        &View::Threads.report(&analysis, "r", None, Detail::Folded),
        "
        Threads by bytes allocated: 3

          thread  allocated      blocks       frees       live      blocks  name
               8   4.88 KiB           1           1   4.88 KiB           1  compressor in server (pid 1001)
               1     1000 B           1           0        0 B           0  server in server (pid 1001)
               1       30 B           1           0       30 B           1  own in other (pid 1002)

        Complete: all 4 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
    let Report::Threads(first) = View::Threads.report(&analysis, "r", Some(1), Detail::Folded)
    else {
        panic!("another report");
    };
    assert_eq!((first.thread_count, first.rows.len()), (3, 1));
    assert!(first.text().starts_with("Threads by bytes allocated: the first 1 of 3\n"));
}

#[test]
fn threads_of_one_process_are_told_without_it() {
    let items = items("8 malloc 5000 = 0x20 @a");
    let text =
        View::Threads.report(&analysis_of(&items, regular_end()), "r", None, Detail::Folded).text();
    assert!(text.contains("  server\n"), "{text}");
}
