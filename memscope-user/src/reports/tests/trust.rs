//! What is said of recordings that are not complete, and of wrong ones.

use crate::{
    model::{Counters, Item, StackOutcome},
    reports::{
        Detail, Inconsistency, Report, Trust, View, check,
        testing::{analysis, analysis_of, items, regular_end},
    },
    store::RecordingEnd,
};

/// The last line of every view.
#[track_caller]
fn check_trust(text: &str, end: RecordingEnd, expected: &str) {
    let analysis = analysis_of(&items(text), end);
    for view in View::ALL {
        let text = view.report(&analysis, "r", None, Detail::Folded).text();
        assert_eq!(text.lines().last(), Some(expected), "{view:?}");
    }
}

#[test]
fn trust_tells_what_is_missing() {
    check_trust(
        "!lost ring_full_free 2\n!lost ring_full_allocation 5\n1 malloc 1 = 0x10 @a\n1 malloc 1 = 0x20 @a\n1 malloc 1 = 0x30 @a",
        regular_end(),
        "INCOMPLETE: 7 of 10 events lost (ring full allocation 5, ring full free 2); \
         so between 1 and 8 blocks are live; stacks: 100.0 % complete.",
    );
    check_trust(
        "!lost ring_full_free 7",
        regular_end(),
        "INCOMPLETE: 7 of 7 events lost (ring full free 7).",
    );
    check_trust(
        "1 malloc 1 = 0x10 @a\n1 malloc 1 = 0x10 @a",
        regular_end(),
        "INCOMPLETE: the end of 1 block was not seen; stacks: 100.0 % complete.",
    );
    check_trust(
        "!unprobed",
        regular_end(),
        "INCOMPLETE: no known allocator was found, so no allocation could be seen.",
    );
    check_trust(
        "!probed-late\n1 malloc 1 = 0x10 @a",
        regular_end(),
        "INCOMPLETE: 1 process image may have allocated before being probed; \
         stacks: 100.0 % complete.",
    );
    check_trust(
        "!late\n1 free 0x10",
        regular_end(),
        "Complete: all 1 event recorded, 0 lost; 1 free of blocks from before the trace.",
    );
    check_trust(
        "!stack b depth_limit f\n1 malloc 1 = 0x10 @a\n1 malloc 1 = null @b\n1 free 0x20",
        RecordingEnd::Truncated,
        "INCOMPLETE: cut off before its end; 1 free of blocks not seen to begin; \
         stacks: 50.0 % complete, 50.0 % depth limit.",
    );
}

/// Nobody runs that program, or memscope was killed before it had said anything.
#[test]
fn where_no_process_was_seen_nothing_is_said_of_its_allocators() {
    let without = |is_left: fn(&Item) -> bool, end| {
        let items: Vec<Item> = items("").into_iter().filter(is_left).collect();
        Trust::of(&analysis_of(&items, end)).sentence
    };
    let is_counters = |item: &Item| matches!(item, Item::Counters(_));
    assert_eq!(without(is_counters, regular_end()), "INCOMPLETE: no such process was seen.");
    assert_eq!(
        without(|_| false, RecordingEnd::Truncated),
        "INCOMPLETE: cut off before its end; how many events were lost is unknown; \
         no process is named in what was saved."
    );
    assert_eq!(
        without(|item| matches!(item, Item::Process(_)), RecordingEnd::Truncated),
        "INCOMPLETE: cut off before its end; how many events were lost is unknown; \
         no allocator is named in what was saved."
    );
    let mut faults = analysis("!pages 0 0");
    faults.definitions.processes.clear();
    let sentence = Trust::of(&faults).sentence;
    assert_eq!(sentence, "Complete: all 0 events recorded, 0 lost; no such process was seen.");
}

#[test]
fn a_recording_killed_before_it_said_what_was_lost_is_incomplete() {
    let mut items = items("1 malloc 1 = 0x10 @a\nlost 4");
    items.retain(|item| !matches!(item, Item::Counters(_)));
    let analysis = analysis_of(&items, RecordingEnd::Truncated);
    let trust = Trust::of(&analysis);
    assert!(!trust.complete);
    assert_eq!((trust.attempted_events, trust.lost_events), (None, 4));
    assert_eq!(trust.lost_by_cause["unattributed"], 4);
    assert_eq!(trust.live_blocks_between, None);
    assert_eq!(
        trust.sentence,
        "INCOMPLETE: cut off before its end; at least 4 events lost; stacks: 100.0 % complete."
    );
}

#[test]
fn one_stack_in_ten_thousand_that_is_not_complete_is_told() {
    let mut analysis = analysis("1 malloc 1 = 0x10 @a");
    for (number, outcome) in StackOutcome::ALL.into_iter().enumerate() {
        analysis.stack_outcomes.insert(outcome, number as u64);
    }
    analysis.stack_outcomes.insert(StackOutcome::Complete, 10_000_000);
    let sentence = Trust::of(&analysis).sentence;
    let told = sentence.split_once("; stacks: ").unwrap().1.trim_end_matches('.');
    assert!(!told.contains(" 0.0 %") && !told.contains("100.0 %"), "{told}");
    let (first, others) = told.split_once(", ").unwrap();
    assert_eq!(first, "99.99 % complete");
    let others: Vec<&str> = others.split(", ").collect();
    assert_eq!(others.len(), StackOutcome::ALL.len() - 1, "each has its words");
    assert_eq!(others[0], "<0.01 % partly by frame pointers");
    analysis.stack_outcomes.insert(StackOutcome::Complete, 455_000);
    let sentence = Trust::of(&analysis).sentence;
    assert!(sentence.contains("stacks: 99.97 % complete, "), "{sentence}");
}

#[test]
fn damage_leaves_no_bounds() {
    let mut analysis = analysis("1 malloc 1 = 0x10 @a");
    analysis.damage_count = 2;
    let trust = Trust::of(&analysis);
    assert_eq!(trust.live_blocks_between, None);
    assert_eq!(
        trust.sentence,
        "INCOMPLETE: 2 damaged places in the file; stacks: 100.0 % complete."
    );
}

#[test]
fn all_events_lost_is_no_leak() {
    let analysis = analysis("!lost ring_full_allocation 3");
    let Report::Leaks(leaks) = View::Leaks.report(&analysis, "r", None, Detail::Folded) else {
        panic!()
    };
    assert_eq!((leaks.live_blocks, leaks.rows.len()), (0, 0));
    let bounds = leaks.trust.live_blocks_between.unwrap();
    assert_eq!((bounds.at_least, bounds.at_most), (0, 3));
}

#[test]
fn contradicting_numbers_are_found() {
    let mut wrong = analysis("1 malloc 1 = 0x10 @a");
    wrong.totals.live_blocks = 2;
    let Err(Inconsistency { left, right, .. }) = check(&wrong) else { panic!() };
    assert_eq!((left, right), (1, 2));
    let mut wrong = analysis("1 malloc 1 = 0x10 @a");
    wrong.sites[0].sums.temporary_allocations = 5;
    check(&wrong).unwrap_err();
    let mut wrong = analysis("1 malloc 1 = 0x10 @a");
    wrong.counters = Some(Counters { attempted: 2, recorded: 1, ..Counters::default() });
    let Err(Inconsistency { law, .. }) = check(&wrong) else { panic!() };
    assert_eq!(law, "attempted = recorded + lost events");
    // Counters read while events come in do not fit each other exactly.
    wrong.end = RecordingEnd::Truncated;
    check(&wrong).unwrap();
}
