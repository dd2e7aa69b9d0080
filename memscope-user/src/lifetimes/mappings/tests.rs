use proptest::prelude::*;

use crate::{
    lifetimes::{MappingSums, MappingTotals, Tracker},
    model::{Event, Fork, MappedBy, MappingKind, ProbeId, ProcessId, StackId, ThreadId},
};

const PAGE: u64 = 4096;
const PARENT: ProcessId = ProcessId(0);
const CHILD: ProcessId = ProcessId(1);

/// In pages from 16 on.
fn mapping(process: ProcessId, time_ns: u64, stack: u32, page: u64, pages: u64) -> Event {
    Event::Mapping {
        process,
        thread: ThreadId(1),
        time_ns,
        address_avma: (16 + page) * PAGE,
        size_bytes: pages * PAGE,
        stack: StackId(stack),
        kind: MappingKind::Anonymous,
        by: MappedBy::Program,
    }
}

fn unmapping(process: ProcessId, page: u64, pages: u64) -> Event {
    Event::Unmapping {
        process,
        thread: ThreadId(1),
        time_ns: 100,
        address_avma: (16 + page) * PAGE,
        size_bytes: pages * PAGE,
    }
}

fn remapping(
    (began_ns, time_ns): (u64, u64),
    stack: u32,
    old: (u64, u64),
    new: (u64, u64),
    keeps_old: bool,
) -> Event {
    Event::Remapping {
        process: PARENT,
        thread: ThreadId(1),
        began_ns,
        time_ns,
        old_address_avma: (16 + old.0) * PAGE,
        old_size_bytes: old.1 * PAGE,
        new_address_avma: (16 + new.0) * PAGE,
        new_size_bytes: new.1 * PAGE,
        keeps_old,
        stack: StackId(stack),
        by: MappedBy::Program,
    }
}

fn tracked(events: &[Event]) -> Tracker {
    let mut tracker = Tracker::new();
    for event in events {
        tracker.apply(event, |_| panic!("no block ends"));
    }
    tracker
}

/// By stack: pages mapped, pages live, pieces.
fn sites(tracker: &Tracker) -> Vec<(u32, u64, u64, u64)> {
    let sites = tracker.mapping_sites().iter();
    let pages = |bytes: u64| bytes / PAGE;
    sites
        .map(|site| {
            let sums = site.sums;
            let live = pages(sums.live_bytes());
            (site.key.stack.0, pages(sums.mapped_bytes), live, sums.live_mappings)
        })
        .collect()
}

fn unknown_pages(tracker: &Tracker) -> u64 {
    tracker.mapping_totals().unknown_unmapped_bytes / PAGE
}

#[test]
fn what_is_unmapped_is_cut_out_of_what_was_mapped() {
    let whole = mapping(PARENT, 1, 7, 0, 10);
    for (cut, live, pieces, unknown) in [
        ((0, 10), 0, 0, 0),
        ((0, 4), 6, 1, 0),
        ((6, 4), 6, 1, 0),
        ((3, 4), 6, 2, 0),
        ((8, 4), 8, 1, 2),
        ((10, 4), 10, 1, 4),
    ] {
        let tracker = tracked(&[whole, unmapping(PARENT, cut.0, cut.1)]);
        assert_eq!(sites(&tracker), [(7, 10, live, pieces)], "{cut:?}");
        assert_eq!(unknown_pages(&tracker), unknown, "{cut:?}");
    }
    // Several at once, the last only in part.
    let tracker = tracked(&[
        mapping(PARENT, 1, 1, 0, 2),
        mapping(PARENT, 2, 2, 4, 2),
        mapping(PARENT, 3, 3, 6, 4),
        unmapping(PARENT, 1, 7),
    ]);
    assert_eq!(sites(&tracker), [(1, 2, 1, 1), (2, 2, 0, 0), (3, 4, 2, 1)]);
    assert_eq!(unknown_pages(&tracker), 2);
}

#[test]
fn what_is_mapped_takes_the_place_of_what_was_there() {
    let tracker = tracked(&[mapping(PARENT, 1, 1, 0, 10), mapping(PARENT, 2, 2, 4, 2)]);
    assert_eq!(sites(&tracker), [(1, 10, 8, 2), (2, 2, 2, 1)]);
    let MappingTotals { sums, peak_bytes, peak_ns, unknown_unmapped_bytes, .. } =
        tracker.mapping_totals();
    assert_eq!((sums.live_bytes(), peak_bytes, peak_ns), (10 * PAGE, 10 * PAGE, 1));
    assert_eq!(unknown_unmapped_bytes, 0);
}

#[test]
fn calls_that_fail_map_nothing() {
    let failed = Event::Mapping {
        process: PARENT,
        thread: ThreadId(1),
        time_ns: 1,
        address_avma: 0,
        size_bytes: PAGE,
        stack: StackId(1),
        kind: MappingKind::File,
        by: MappedBy::Allocator(ProbeId(3)),
    };
    let tracker = tracked(&[failed]);
    let site = tracker.mapping_sites()[0];
    assert_eq!((site.kind, site.by), (MappingKind::File, MappedBy::Allocator(ProbeId(3))));
    assert_eq!(site.sums, MappingSums { failed_mappings: 1, ..MappingSums::default() });
}

#[test]
fn moved_memory_keeps_its_kind_and_leaves_its_place() {
    let tracker = tracked(&[
        mapping(PARENT, 1, 1, 0, 4),
        remapping((2, 3), 2, (0, 4), (20, 8), false),
        remapping((4, 5), 3, (40, 1), (50, 1), false),
    ]);
    assert_eq!(sites(&tracker), [(1, 4, 0, 0), (2, 8, 8, 1), (3, 1, 1, 1)]);
    let kinds: Vec<_> = tracker.mapping_sites().iter().map(|site| site.kind).collect();
    let (anonymous, unknown) = (MappingKind::Anonymous, MappingKind::Unknown);
    assert_eq!(kinds, [anonymous, anonymous, unknown]);
    assert_eq!(unknown_pages(&tracker), 1);
    // In place, and with the old one kept.
    let grown =
        tracked(&[mapping(PARENT, 1, 1, 0, 4), remapping((2, 3), 2, (0, 4), (0, 6), false)]);
    assert_eq!(sites(&grown), [(1, 4, 0, 0), (2, 6, 6, 1)]);
    let kept = tracked(&[mapping(PARENT, 1, 1, 0, 4), remapping((2, 3), 2, (0, 4), (9, 4), true)]);
    assert_eq!(sites(&kept), [(1, 4, 4, 1), (2, 4, 4, 1)]);
}

#[test]
fn what_another_thread_has_mapped_where_memory_was_moved_from_stays() {
    // It was told before the move, which had begun before it.
    let tracker = tracked(&[
        mapping(PARENT, 1, 1, 0, 4),
        mapping(PARENT, 6, 2, 0, 2),
        remapping((5, 7), 3, (0, 4), (20, 4), false),
    ]);
    assert_eq!(sites(&tracker), [(1, 4, 0, 0), (2, 2, 2, 1), (3, 4, 4, 1)]);
}

#[test]
fn a_child_inherits_mappings_and_counts_none_of_them() {
    let mut tracker = tracked(&[mapping(PARENT, 1, 1, 0, 4)]);
    tracker.fork(&Fork { process: CHILD, parent: PARENT, time_ns: 2 });
    for event in [unmapping(CHILD, 0, 3), mapping(CHILD, 3, 2, 3, 5), unmapping(PARENT, 0, 1)] {
        tracker.apply(&event, |_| panic!("no block ends"));
    }
    assert_eq!(sites(&tracker), [(1, 4, 3, 1), (2, 5, 5, 1)]);
    assert_eq!(tracker.mapping_totals().inherited_unmapped_bytes, 4 * PAGE);
    assert_eq!(unknown_pages(&tracker), 0);
    // What ends has its memory still in the sums.
    tracker.end_process(CHILD);
    assert_eq!(tracker.mapping_totals().sums.live_bytes(), 8 * PAGE);
}

proptest! {
    /// Against memory told page by page.
    #[test]
    fn any_changes_give_what_single_pages_give(
        changes in prop::collection::vec((0..3_u8, 0..24_u64, 1..8_u64, 0..24_u64, 0..4_u32), 0..60)
    ) {
        let mut pages = [None; 64];
        let mut events = Vec::new();
        let (mut mapped, mut unknown) = ([0; 4], 0);
        for (time_ns, (change, page, count, other, stack)) in (1..).zip(changes) {
            let (range, from) = (page as usize..(page + count) as usize, other as usize);
            match change {
                0 => events.push(mapping(PARENT, time_ns, stack, page, count)),
                1 => events.push(unmapping(PARENT, page, count)),
                _ => {
                    events.push(remapping((time_ns, time_ns), stack, (other, 2), (page, count), false));
                    unknown += pages[from..from + 2].iter().filter(|page| page.is_none()).count();
                    pages[from..from + 2].fill(None);
                }
            }
            if change == 1 {
                unknown += pages[range.clone()].iter().filter(|page| page.is_none()).count();
                pages[range].fill(None);
            } else {
                pages[range].fill(Some(stack));
                mapped[stack as usize] += count;
            }
        }
        let tracker = tracked(&events);
        let mut found = [(0, 0); 4];
        for (stack, mapped, live, _) in sites(&tracker) {
            found[stack as usize].0 += mapped;
            found[stack as usize].1 += live;
        }
        for stack in 0..4_u32 {
            let live = pages.iter().filter(|page| **page == Some(stack)).count() as u64;
            prop_assert_eq!(found[stack as usize], (mapped[stack as usize], live));
        }
        prop_assert_eq!(unknown_pages(&tracker), unknown as u64);
        let held = tracker.mapping_totals();
        prop_assert!(held.peak_bytes >= held.sums.live_bytes());
    }

    #[test]
    fn any_ranges_are_taken(ranges in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..20)) {
        let mut tracker = Tracker::new();
        for (address_avma, size_bytes, maps) in ranges {
            let event = match mapping(PARENT, 1, 1, 0, 1) {
                Event::Mapping { process, thread, time_ns, .. } if !maps => {
                    Event::Unmapping { process, thread, time_ns, address_avma, size_bytes }
                }
                Event::Mapping { process, thread, time_ns, stack, kind, by, .. } => Event::Mapping {
                    process, thread, time_ns, address_avma, size_bytes, stack, kind, by,
                },
                other => other,
            };
            tracker.apply(&event, |_| {});
        }
        let totals = tracker.mapping_totals().sums;
        let mut sums = MappingSums::default();
        tracker.mapping_sites().iter().for_each(|site| sums.add(&site.sums));
        prop_assert_eq!(sums, totals);
    }
}
