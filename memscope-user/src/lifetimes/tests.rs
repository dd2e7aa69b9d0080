//! The rules of `docs/accounting.md`, a few lines of trace each.

use std::fmt::Write as _;

use super::{
    Block, Tracker,
    testing::{Trace, parse},
};
use crate::model::StackId;

mod forks;
mod mismatches;
mod properties;
mod reallocations;
mod sampling;
mod threads;
mod windows;

/// Applies a trace; gives the tracker and what ended.
pub(super) fn run(trace: &Trace) -> (Tracker, Vec<Block>) {
    let mut tracker = Tracker::new();
    let mut ended = Vec::new();
    let mut ends = trace.process_ends.iter().peekable();
    let mut windows = trace.windows.iter().peekable();
    let mut forks = trace.forks.iter().peekable();
    for position in 0..=trace.events.len() {
        while let Some((_, fork)) = forks.next_if(|(after, _)| *after == position) {
            tracker.fork(fork);
        }
        while let Some((_, process, _)) = ends.next_if(|(after, ..)| *after == position) {
            tracker.end_process(*process);
        }
        while let Some((_, window)) = windows.next_if(|(after, _)| *after == position) {
            tracker.end_window(window, |block| ended.push(*block));
        }
        if let Some(event) = trace.events.get(position) {
            tracker.apply(event, |block| ended.push(*block));
        }
    }
    (tracker, ended)
}

/// What came out, in words: totals that are not 0, then ended blocks, then live ones.
fn tell(trace: &Trace) -> String {
    let (tracker, ended) = run(trace);
    let totals = tracker.totals();
    let mut told = Vec::new();
    for (name, blocks, bytes) in [
        ("allocated", totals.allocations, Some(totals.allocated_bytes)),
        ("freed", totals.frees, Some(totals.freed_bytes)),
        ("unseen", totals.unseen_ends, Some(totals.unseen_end_bytes)),
        ("live", totals.live_blocks, Some(totals.live_bytes)),
        ("peak", totals.peak_live_blocks, Some(totals.peak_live_bytes)),
        ("reallocations", totals.reallocations, None),
        ("failed", totals.failed_allocations, None),
        ("temporary", totals.temporary_allocations, None),
        ("unknown", totals.unknown_frees, None),
        ("inherited", totals.inherited_frees, None),
        ("internal", totals.allocator_internal_frees, None),
        ("lost", totals.marked_losses, None),
    ] {
        match bytes {
            _ if blocks == 0 => {}
            Some(bytes) => told.push(format!("{name} {blocks}/{bytes}")),
            None => told.push(format!("{name} {blocks}")),
        }
    }
    let mut out = told.join(", ");
    let name = |site: u32| {
        let id: StackId = tracker.site_key(site).unwrap().stack;
        trace.stacks().into_iter().find(|(_, known, _)| *known == id).unwrap().0
    };
    for Block { address_avma, block, freed_ns, freed_by, .. } in &ended {
        let lifetime_ns = freed_ns - block.allocated_ns;
        let by = freed_by.map_or("?".to_owned(), |thread| thread.to_string());
        let site = name(block.site);
        write!(
            out,
            "\n{address_avma:#x} {} @{site} {}→{by} {lifetime_ns}ns",
            block.size_bytes, block.thread
        )
        .unwrap();
        if block.chain_allocated_ns != block.allocated_ns {
            write!(out, " chain {}ns", freed_ns - block.chain_allocated_ns).unwrap();
        }
    }
    let mut live: Vec<_> = tracker.live_blocks().collect();
    live.sort_by_key(|(process, address_avma, _)| (*process, *address_avma));
    for (_, address_avma, block) in live {
        write!(out, "\nlive {address_avma:#x} {} @{}", block.size_bytes, name(block.site)).unwrap();
    }
    out
}

/// `expected` is what [`tell`] says, indented as the test likes.
#[track_caller]
fn check(trace: &str, expected: &str) {
    let told = tell(&parse(trace));
    let lines = expected.lines().map(str::trim).filter(|line| !line.is_empty());
    let expected = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(told, expected, "\nof the trace:\n{trace}");
}

#[test]
fn nothing_gives_nothing() {
    check("", "");
}

#[test]
fn a_block_begins_and_ends() {
    check(
        "1 malloc 100 = 0x10 @a
         +1000
         1 free 0x10",
        "allocated 1/100, freed 1/100, peak 1/100, temporary 1
         0x10 100 @a 1→1 1010ns",
    );
}

#[test]
fn a_block_of_no_bytes_is_a_block() {
    check(
        "1 malloc 0 = 0x10 @a",
        "allocated 1/0, live 1/0
         live 0x10 0 @a",
    );
}

#[test]
fn a_failed_allocation_is_none() {
    check("1 malloc 100 = null @a", "failed 1");
}

#[test]
fn temporary_is_what_its_thread_frees_before_it_allocates_again() {
    check(
        "1 malloc 1 = 0x10 @a
         1 malloc 2 = 0x20 @a
         2 malloc 4 = 0x30 @a
         1 free 0x20
         1 free 0x10
         1 free 0x30",
        "allocated 3/7, freed 3/7, peak 3/7, temporary 1
         0x20 2 @a 1→1 20ns
         0x10 1 @a 1→1 40ns
         0x30 4 @a 2→1 30ns",
    );
}

#[test]
fn a_failed_allocation_in_between_is_no_allocation_in_between() {
    check(
        "1 malloc 1 = 0x10 @a
         1 malloc 2 = null @a
         1 free 0x10",
        "allocated 1/1, freed 1/1, peak 1/1, failed 1, temporary 1
         0x10 1 @a 1→1 20ns",
    );
}

#[test]
fn a_thread_with_a_used_number_is_another_thread() {
    check(
        "1 malloc 1 = 0x10 @a
         1 exit
         1 malloc 2 = 0x20 @a
         1 free 0x10",
        "allocated 2/3, freed 1/1, live 1/2, peak 2/3
         0x10 1 @a 1→1 30ns
         live 0x20 2 @a",
    );
}

#[test]
fn a_block_freed_by_another_thread_is_freed() {
    check(
        "1 malloc 100 = 0x10 @a
         2 free 0x10",
        "allocated 1/100, freed 1/100, peak 1/100
         0x10 100 @a 1→2 10ns",
    );
}

#[test]
fn five_lives_at_one_address_are_five_blocks() {
    let life = "1 malloc 8 = 0x10 @a\n1 free 0x10\n";
    let ended = "0x10 8 @a 1→1 10ns\n".repeat(5);
    check(&life.repeat(5), &format!("allocated 5/40, freed 5/40, peak 1/8, temporary 5\n{ended}"));
}

#[test]
fn a_free_of_an_unknown_block_is_counted_apart() {
    check("1 free 0x10\n1 free 0x10", "unknown 2");
}

#[test]
fn addresses_of_two_processes_are_two_addresses() {
    check(
        "1:1 malloc 1 = 0x10 @a
         2:2 malloc 2 = 0x10 @b
         1:1 free 0x10",
        "allocated 2/3, freed 1/1, live 1/2, peak 2/3, temporary 1
         0x10 1 @a 1→1 20ns
         live 0x10 2 @b",
    );
}

#[test]
fn an_address_given_out_twice_means_an_end_not_seen() {
    check(
        "1 malloc 100 = 0x10 @a
         1 malloc 200 = 0x10 @b",
        "allocated 2/300, unseen 1/100, live 1/200, peak 1/200
         0x10 100 @a 1→? 10ns
         live 0x10 200 @b",
    );
}

#[test]
fn a_dying_threads_cache_is_no_free() {
    check(
        "1 malloc 100 = 0x10 @a
         1 free 0x10
         1 free! 0x10
         1 free! 0x20
         1 exit",
        "allocated 1/100, freed 1/100, peak 1/100, temporary 1, internal 2
         0x10 100 @a 1→1 10ns",
    );
}

#[test]
fn the_allocators_module_can_free_unknown_blocks_of_the_program() {
    check(
        "1 free! 0x10
         1 malloc 1 = 0x20 @a
         1 free! 0x30
         1 free 0x20
         2 free! 0x40",
        "allocated 1/1, freed 1/1, peak 1/1, temporary 1, unknown 3
         0x20 1 @a 1→1 20ns",
    );
}

#[test]
fn the_allocators_module_can_free_known_blocks() {
    check(
        "1 malloc 1 = 0x10 @a
         1 free! 0x10",
        "allocated 1/1, freed 1/1, peak 1/1, temporary 1
         0x10 1 @a 1→1 10ns",
    );
}

#[test]
fn a_process_that_ended_leaves_live_blocks_and_room_for_the_peak() {
    check(
        "1:1 malloc 100 = 0x10 @a
         end 1
         2:2 malloc 60 = 0x10 @b
         2:2 malloc 30 = 0x20 @b",
        "allocated 3/190, live 3/190, peak 1/100
         live 0x10 100 @a
         live 0x10 60 @b
         live 0x20 30 @b",
    );
}

#[test]
fn the_peak_is_the_first_moment_of_most_bytes() {
    let trace = parse(
        "1 malloc 100 = 0x10 @a
         1 malloc 0 = 0x20 @b
         1 free 0x10
         1 malloc 100 = 0x30 @b",
    );
    let (tracker, _) = run(&trace);
    let totals = tracker.totals();
    assert_eq!(
        (totals.peak_live_blocks, totals.peak_live_bytes, totals.peak_time_ns),
        (1, 100, 10)
    );
    let at_peak: Vec<_> = tracker.sites().iter().map(|site| site.at_peak.bytes).collect();
    assert_eq!(at_peak, [100, 0]);
}

#[test]
fn losses_are_kept_as_stretches_of_time() {
    let (tracker, _) = run(&parse("1 malloc 1 = 0x10 @a\n+90\nlost 5\nlost 2"));
    let windows: Vec<_> = tracker
        .loss_windows()
        .iter()
        .map(|window| (window.from_ns, window.until_ns, window.lost_count))
        .collect();
    assert_eq!(windows, [(100, 110, 5), (110, 120, 2)]);
    assert_eq!(tracker.totals().marked_losses, 7);
}

#[test]
fn memory_is_bounded_by_what_is_live() {
    let mut trace = String::new();
    for _ in 0..1000 {
        trace.push_str("1 malloc 8 = 0x10 @a\n1 free 0x10\n2 malloc 8 = 0x20 @b\n2 realloc 0x20 9 = 0x20 @c\n2 free 0x20\n");
    }
    trace.push_str("1 exit\n2 exit");
    let (tracker, ended) = run(&parse(&trace));
    assert_eq!(ended.len(), 3000);
    assert_eq!(tracker.live_blocks().count(), 0);
    assert_eq!(tracker.sites().len(), 3);
}
