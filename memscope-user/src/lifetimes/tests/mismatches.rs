//! Blocks that another allocator than their own was to free: only what is known for certain.

use super::{Tracker, parse};
use crate::model::{AllocatorCall, AllocatorId, OwnerEvidence, ProbeId, ProbeOwner};

/// Functions 1 and 2 are of one allocator, 3 and 4 of another, 5 and 6 of one that was described; of the
/// others it is not known.
fn tracker() -> Tracker {
    let mut tracker = Tracker::new();
    for number in 1..=6 {
        let known_by = if number < 5 { OwnerEvidence::Module } else { OwnerEvidence::Description };
        let (probe, allocator) = (ProbeId(number), AllocatorId(number.div_ceil(2)));
        tracker.owner(&ProbeOwner { probe, allocator, known_by });
    }
    tracker
}

fn apply(tracker: &mut Tracker, trace: &str) {
    parse(trace).events.iter().for_each(|event| tracker.apply(event, |_| {}));
}

/// `3→1 2/300`: blocks that function 3 gave, given twice to function 1, 300 bytes in all.
fn tell(tracker: &Tracker) -> String {
    let found = tracker.mismatches();
    let frees: u64 = found.iter().map(|found| found.frees).sum();
    assert_eq!(tracker.totals().mismatched_frees, frees);
    let sites = tracker.sites();
    assert_eq!(sites.iter().map(|site| site.sums.mismatched_frees).sum::<u64>(), frees);
    let told = found.iter().map(|found| {
        format!("{}→{} {}/{}", found.given_by, found.freed_by, found.frees, found.bytes)
    });
    told.collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn check(trace: &str, expected: &str) {
    let mut tracker = tracker();
    apply(&mut tracker, trace);
    assert_eq!(tell(&tracker), expected, "of {trace}");
}

fn call(outer: u32, inner: u32) -> AllocatorCall {
    let known = |number: u32| (number != 0).then_some(AllocatorId(number));
    AllocatorCall { outer: known(outer), inner: known(inner) }
}

#[test]
fn the_allocators_own_functions_are_no_others() {
    check("1 malloc.1 10 = 0x10 @a\n1 free.2 0x10", "");
    check("1 malloc.2 10 = 0x10 @a\n1 free.2 0x10\n1 free.3 0x10", "");
}

#[test]
fn frees_and_reallocations_by_another_one_are_told_by_site() {
    check(
        "1 malloc.1 100 = 0x10 @a
         2 malloc.1 200 = 0x20 @a
         1 malloc.2 7 = 0x30 @b
         1 malloc.4 8 = 0x40 @b
         1 free.3 0x10
         2 free.3 0x20
         1 free.4 0x30
         2 realloc.1 0x40 9 = 0x50 @c
         2 free.2 0x50",
        "1→3 2/300, 2→4 1/7, 4→1 1/8",
    );
}

#[test]
fn a_call_counts_even_if_it_fails_or_never_returns() {
    check("1 malloc.1 10 = 0x10 @a\n1 realloc>.3 0x10", "1→3 1/10");
    check("1 malloc.1 10 = 0x10 @a\n1 realloc.3 0x10 20 = null @a\n1 free.2 0x10", "1→3 1/10");
}

#[test]
fn what_is_not_known_is_not_told() {
    check("1 malloc.9 10 = 0x10 @a\n1 free.1 0x10", "");
    check("1 malloc.1 10 = 0x10 @a\n1 free.9 0x10", "");
    check("1 free.1 0x10", "");
    check("every 4096\n1 malloc.1 10 = 0x10 @a\n1 free.3 0x10", "");
    let mut nothing = Tracker::new();
    apply(&mut nothing, "1 malloc.1 10 = 0x10 @a\n1 free.3 0x10");
    assert_eq!(tell(&nothing), "");
}

#[test]
fn a_block_belongs_to_whom_gave_its_address_last() {
    check(
        "1 malloc.1 10 = 0x10 @a
         1 malloc.5 5 = 0x10 @a
         1 free.6 0x10
         1 free.1 0x10",
        "",
    );
}

#[test]
fn described_allocators_free_what_is_theirs_only_but_may_give_what_is_not() {
    check("1 malloc.1 10 = 0x10 @a\n1 free.6 0x10", "1→6 1/10");
    check("1 malloc.5 10 = 0x10 @a\n1 free.1 0x10", "");
}

#[test]
fn of_allocators_that_call_each_other_nothing_is_known_whenever_they_do() {
    let trace = "1 malloc.1 10 = 0x10 @a\n1 free.3 0x10\n1 malloc.1 10 = 0x10 @a\n1 free.6 0x10";
    for (calls, expected) in [
        (vec![], "1→3 1/10, 1→6 1/10"),
        // What is given can be another one's, or is handed on to it.
        (vec![call(1, 2)], "1→6 1/10"),
        (vec![call(2, 1)], "1→6 1/10"),
        (vec![call(2, 0)], "1→6 1/10"),
        (vec![call(1, 0)], ""),
        (vec![call(1, 3)], "1→3 1/10"),
        // A pool that has its memory from another one is one of its own all the same.
        (vec![call(3, 1)], "1→3 1/10, 1→6 1/10"),
        (vec![call(2, 3)], "1→3 1/10"),
        (vec![call(0, 3)], "1→3 1/10"),
    ] {
        for are_first in [true, false] {
            let mut tracker = tracker();
            if are_first {
                calls.iter().for_each(|call| tracker.allocator_call(call));
            }
            apply(&mut tracker, trace);
            calls.iter().for_each(|call| tracker.allocator_call(call));
            assert_eq!(tell(&tracker), expected, "{calls:?}");
        }
    }
}

#[test]
fn what_can_have_happened_in_a_loss_is_not_told() {
    // The block can have ended, and another one can have taken its place.
    check("1 malloc.1 10 = 0x10 @a\nlost 2\n1 free.3 0x10", "");
    check("lost 2\n1 malloc.1 10 = 0x10 @a\n1 free.3 0x10", "1→3 1/10");
    check("1 malloc.1 10 = 0x10 @a\n1 free.3 0x10\n+10\nlost 2", "1→3 1/10");
    // The marker of another processor comes late.
    let mut late = tracker();
    apply(&mut late, "1 malloc.1 10 = 0x10 @a\n1 free.3 0x10\n+10\n1 malloc.1 10 = 0x20 @a");
    late.apply(
        &crate::model::Event::Loss { first_lost_ns: 15, time_ns: 50, lost_count: 1 },
        |_| {},
    );
    assert_eq!(tell(&late), "");
    let mut distrusted = tracker();
    apply(&mut distrusted, "1 malloc.1 10 = 0x10 @a\n1 free.3 0x10");
    distrusted.distrust();
    apply(&mut distrusted, "1 malloc.1 10 = 0x10 @a\n1 free.3 0x10");
    assert_eq!(tell(&distrusted), "");
}

#[test]
fn functions_called_by_pointers_are_told_apart_at_one_site() {
    check(
        "1 malloc.1 10 = 0x10 @a
         1 malloc.3 20 = 0x20 @a
         1 malloc.3 30 = 0x30 @a
         1 free.2 0x20
         1 free.4 0x30
         1 malloc.1 40 = 0x30 @a
         1 free.2 0x10
         1 free.2 0x30",
        "3→2 1/20",
    );
}

#[test]
fn forged_numbers_are_passed_over() {
    let mut tracker = tracker();
    let owner = |probe, allocator| ProbeOwner {
        probe: ProbeId(probe),
        allocator: AllocatorId(allocator),
        known_by: OwnerEvidence::Module,
    };
    tracker.owner(&owner(u32::MAX, 1));
    tracker.owner(&owner(7, u32::MAX));
    tracker.allocator_call(&call(u32::MAX, u32::MAX));
    apply(&mut tracker, "1 malloc.7 10 = 0x10 @a\n1 free.4294967295 0x10");
    assert_eq!(tell(&tracker), "");
}
