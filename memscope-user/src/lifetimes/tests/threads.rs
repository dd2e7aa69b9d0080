//! Who has done what: the calls of each thread.

use super::run;
use crate::{
    lifetimes::{ThreadSums, testing::parse},
    model::{ProcessId, ThreadId},
};

fn sums(numbers: [u64; 6]) -> ThreadSums {
    let [
        allocations,
        allocated_bytes,
        frees,
        freed_bytes,
        temporary_allocations,
        failed_allocations,
    ] = numbers;
    ThreadSums {
        allocations,
        allocated_bytes,
        frees,
        freed_bytes,
        temporary_allocations,
        failed_allocations,
    }
}

/// A worker allocates for another one, which frees and reallocates, and both end; a third one runs on.
const WORKERS: &str = "
    1:7 malloc 100 = 0x10 @a
    1:7 malloc 20 = 0x20 @a
    1:8 free 0x10
    1:8 realloc 0x20 30 = 0x30 @b
    1:7 exit
    1:8 malloc 5 = 0x50 @a
    1:8 free 0x50
    1:8 exit
    1:9 malloc 7 = null @a
    1:9 malloc 1000 = 0x40 @a
    2:9 malloc 1 = 0x40 @a";

#[test]
fn each_thread_has_its_calls_and_what_lives_of_what_it_has_allocated() {
    let (tracker, _) = run(&parse(WORKERS));
    let threads: Vec<_> = tracker
        .threads()
        .iter()
        .map(|record| (record.thread.unwrap(), record.sums, record.live.blocks, record.live.bytes))
        .collect();
    let of = |process, thread| (ProcessId(process), ThreadId(thread));
    assert_eq!(
        threads,
        [
            (of(1, 7), sums([2, 120, 0, 0, 0, 0]), 0, 0),
            (of(1, 8), sums([2, 35, 3, 125, 1, 0]), 1, 30),
            (of(1, 9), sums([1, 1000, 0, 0, 0, 1]), 1, 1000),
            (of(2, 9), sums([1, 1, 0, 0, 0, 0]), 1, 1),
        ]
    );
}

#[test]
fn a_number_that_is_given_again_is_told_once() {
    let (tracker, _) = run(&parse(
        "1:7 malloc 100 = 0x10 @a
         1:7 exit
         1:7 malloc 20 = 0x20 @a
         1:7 free 0x10",
    ));
    let threads = tracker.threads();
    assert_eq!(threads.len(), 1);
    assert_eq!(threads[0].sums, sums([2, 120, 1, 100, 0, 0]));
    assert_eq!((threads[0].live.blocks, threads[0].live.bytes), (1, 20));
}

/// What is kept is bounded, and the sums hold.
#[test]
fn too_many_threads_are_summed() {
    let mut tracker = super::Tracker::new();
    let mut held = 0;
    for thread in 0..200_000_u32 {
        let line = format!("1:{thread} malloc 10 = {:#x} @a\n1:{thread} exit", 16 * (thread + 1));
        let trace = parse(&line);
        for event in &trace.events {
            tracker.apply(event, |_| {});
        }
        if thread == 100_000 {
            held = tracker.threads().len();
        }
    }
    let threads = tracker.threads();
    assert_eq!((threads.len(), held), (65_537, 65_537));
    let others = threads.last().unwrap();
    assert_eq!((others.thread, others.sums.allocations), (None, 200_000 - 65_536));
    assert_eq!(others.live.bytes, (200_000 - 65_536) * 10);
}
