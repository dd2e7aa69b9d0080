use proptest::prelude::*;

use super::*;
use crate::model::ModuleId;

const PAGE: u64 = 0x1000;
const LATER: u64 = 1000;

fn module(id: u32) -> Arc<Module> {
    Arc::new(Module { id: ModuleId(id), path: format!("/lib/{id}.so"), build_id: vec![] })
}

/// These pages of a file that is mapped as a whole at address 0, or of one without file.
fn pages(first: u64, end: u64, file: Option<u32>) -> CodeRange {
    CodeRange {
        start_avma: first * PAGE,
        end_avma: end * PAGE,
        file_offset: first * PAGE,
        module: file.map(module),
        content: Content::NoAllocator,
    }
}

fn file_at(space: &AddressSpace, page: u64, time_ns: u64) -> Option<Option<u32>> {
    let range = space.range_at(page * PAGE + 8, time_ns)?;
    assert!(range.holds(page * PAGE + 8));
    Some(range.module.as_ref().map(|module| module.id.0))
}

/// What is on a page at several times; 0 for nothing.
fn history(space: &AddressSpace, page: u64, times_ns: &[u64]) -> Vec<u32> {
    times_ns.iter().map(|time| file_at(space, page, *time).flatten().unwrap_or(0)).collect()
}

#[test]
fn addresses_are_found_within_bounds_only() {
    let mut space = AddressSpace::default();
    space.observe(&[pages(1, 2, None), pages(3, 4, None)], 5, 6);
    let start = |avma| space.range_at(avma, LATER).map(|range| range.start_avma);
    assert_eq!(start(0xfff), None);
    assert_eq!(start(0x1000), Some(0x1000));
    assert_eq!(start(0x1fff), Some(0x1000));
    assert_eq!(start(0x2000), None);
    assert_eq!(start(0x3fff), Some(0x3000));
    assert_eq!(start(u64::MAX), None);
    assert_eq!(AddressSpace::default().range_at(0x1000, LATER), None);
}

#[test]
fn a_library_is_found_at_its_times_after_another_took_its_place() {
    let mut space = AddressSpace::default();
    space.map(10, pages(1, 4, Some(1)));
    space.map(20, pages(1, 4, Some(2)));
    assert_eq!(history(&space, 2, &[9, 10, 19, 20, LATER]), [0, 1, 1, 2, 2]);
}

#[test]
fn a_mapping_over_the_middle_leaves_both_ends() {
    let mut space = AddressSpace::default();
    space.map(10, pages(0, 6, Some(1)));
    space.map(20, pages(2, 4, Some(2)));
    let at = |time| (0..6).map(|page| history(&space, page, &[time])[0]).collect::<Vec<_>>();
    assert_eq!(at(15), [1; 6]);
    assert_eq!(at(25), [1, 1, 2, 2, 1, 1]);
    let end = space.range_at(5 * PAGE, 25).unwrap();
    assert_eq!(
        (end.start_avma, end.file_offset),
        (4 * PAGE, 4 * PAGE),
        "it starts later in its file"
    );
}

#[test]
fn what_an_observation_lacks_is_found_until_then() {
    let mut space = AddressSpace::default();
    space.map(10, pages(1, 4, Some(1)));
    space.observe(&[pages(1, 4, Some(1))], 20, 21);
    space.observe(&[pages(1, 2, Some(1))], 30, 31);
    assert_eq!(history(&space, 3, &[10, 20, 25, 30, 31]), [1, 1, 1, 1, 0]);
    assert_eq!(history(&space, 1, &[10, 31]), [1, 1], "a part of it is still there");
}

#[test]
fn what_is_first_seen_may_be_there_since_the_observation_before() {
    let mut space = AddressSpace::default();
    space.observe(&[pages(1, 2, Some(1))], 20, 21);
    space.observe(&[pages(1, 2, Some(1)), pages(5, 6, Some(2))], 30, 31);
    assert_eq!(history(&space, 1, &[0, 25]), [1, 1], "of before the first nothing is known");
    assert_eq!(history(&space, 5, &[20, 21, 30]), [0, 2, 2]);
}

/// The collector and who attaches probes look at the same time.
#[test]
fn what_two_readings_saw_that_overlap_is_not_taken_for_missing() {
    for (first, second) in [((10, 12), (11, 20)), ((11, 20), (10, 12)), ((10, 20), (11, 12))] {
        let mut space = AddressSpace::default();
        for (begun_ns, done_ns) in [first, second] {
            space.observe(&[pages(1, 4, Some(1))], begun_ns, done_ns);
        }
        assert_eq!(history(&space, 2, &[12, 20, LATER]), [1, 1, 1], "{first:?}, {second:?}");
        // It is as one that was seen last when the later of the two began.
        space.observe(&[], 30, 31);
        assert_eq!(history(&space, 2, &[20, 30, 31]), [1, 1, 0], "{first:?}, {second:?}");
    }
    // Another took its place: the later reading is right.
    let mut space = AddressSpace::default();
    space.observe(&[pages(1, 4, Some(1))], 10, 12);
    space.observe(&[pages(1, 4, Some(2))], 11, 20);
    assert_eq!(history(&space, 2, &[20, LATER]), [2, 2]);
}

#[test]
fn what_is_mapped_while_maps_is_read_is_not_taken_for_missing() {
    let mut space = AddressSpace::default();
    space.map(25, pages(1, 2, Some(1)));
    space.observe(&[], 20, 30);
    assert_eq!(history(&space, 1, &[26, 31]), [1, 1]);
    space.observe(&[], 40, 50);
    assert_eq!(history(&space, 1, &[45, 50]), [1, 0], "unmapped at the earliest after 40");
}

#[test]
fn what_took_a_place_while_maps_was_read_was_not_there_before_its_event() {
    let seen = |space: &mut AddressSpace| space.observe(&[pages(1, 2, Some(2))], 50, 60);
    let event = |space: &mut AddressSpace| space.map(55, pages(1, 2, Some(2)));
    for event_first in [false, true] {
        let mut space = AddressSpace::default();
        space.map(30, pages(1, 2, Some(1)));
        if event_first {
            event(&mut space);
            seen(&mut space);
        } else {
            seen(&mut space);
            event(&mut space);
        }
        assert_eq!(history(&space, 1, &[49, 52, 55, 61]), [1, 1, 2, 2], "{event_first}");
    }
    // It took the place and lost it again while maps was read.
    let mut space = AddressSpace::default();
    space.map(30, pages(1, 2, Some(1)));
    seen(&mut space);
    event(&mut space);
    space.map(58, pages(1, 2, Some(3)));
    assert_eq!(history(&space, 1, &[52, 56, 58, 59, 60, 70]), [1, 2, 3, 3, 3, 3]);
    // The same was read twice, but something else was there in between.
    let mut space = AddressSpace::default();
    space.map(30, pages(1, 2, Some(2)));
    space.map(40, pages(1, 2, Some(1)));
    seen(&mut space);
    space.observe(&[pages(1, 2, Some(2))], 80, 81);
    for (time_ns, module) in [(54, 2), (57, 1), (70, 2)] {
        space.map(time_ns, pages(1, 2, Some(module)));
    }
    assert_eq!(history(&space, 1, &[52, 55, 58, 62, 69, 70, 90]), [1, 2, 1, 1, 1, 2, 2]);
    // What was read was there before the event; that it is gone is known from the event.
    let mut space = AddressSpace::default();
    space.map(30, pages(1, 2, Some(2)));
    space.map(55, pages(1, 2, Some(1)));
    seen(&mut space);
    assert_eq!(history(&space, 1, &[52, 55, 61]), [2, 1, 1]);
}

#[test]
fn a_late_event_finds_its_place() {
    let mut space = AddressSpace::default();
    space.map(10, pages(1, 2, Some(1)));
    space.map(30, pages(1, 2, Some(3)));
    space.map(20, pages(1, 2, Some(2)));
    assert_eq!(history(&space, 1, &[10, 20, 30]), [1, 2, 3]);
    space.observe(&[pages(1, 2, Some(3))], 50, 51);
    space.map(40, pages(1, 2, Some(4)));
    space.map(45, pages(1, 2, Some(3)));
    assert_eq!(history(&space, 1, &[39, 40, 50]), [3, 4, 3], "the third was mapped again");
}

#[test]
fn a_late_observation_does_not_overrule_events() {
    let mut space = AddressSpace::default();
    for (time, file) in [(10, 1), (20, 2), (40, 3), (60, 2)] {
        space.map(time, pages(1, 2, Some(file)));
    }
    space.observe(&[pages(1, 2, Some(2))], 30, 31);
    assert_eq!(history(&space, 1, &[15, 25, 35, 45, 65]), [1, 2, 2, 3, 2]);
}

#[test]
fn a_second_mapping_of_the_same_is_nothing_new() {
    let mut space = AddressSpace::default();
    for time in 0..2 * MAX_ENDED_RANGES as u64 {
        // As a compiler does that writes its code between two calls of mprotect.
        space.map(time, pages(1, 2, None));
    }
    assert_eq!((space.live.len(), space.ended.len(), space.forgotten()), (1, 0, 0));
    space.map(LATER, pages(1, 3, None));
    assert_eq!(file_at(&space, 2, LATER), Some(None), "grown");
}

#[test]
fn exec_empties_the_address_space_at_the_time_the_kernel_told() {
    let mut space = AddressSpace::default();
    space.map(10, pages(1, 2, Some(1)));
    space.replaced(20);
    space.map(21, pages(1, 2, Some(2)));
    space.replaced(40);
    space.map(41, pages(1, 2, Some(3)));
    assert_eq!(space.next_exec_ns(), 20);
    assert_eq!(space.exec(25), 20);
    assert_eq!(space.next_exec_ns(), 40);
    assert_eq!(space.exec(45), 40);
    assert_eq!(history(&space, 1, &[15, 20, 21, 39, 40, 41]), [1, 0, 2, 2, 0, 3]);
}

#[test]
fn exec_that_the_kernel_did_not_tell_empties_the_address_space_at_its_record() {
    let mut space = AddressSpace::default();
    space.observe(&[pages(1, 2, Some(1))], 10, 11);
    assert_eq!(space.exec(20), 20);
    assert_eq!(history(&space, 1, &[19, 20]), [1, 0]);
    space.observe(&[pages(1, 2, Some(2))], 30, 31);
    assert_eq!(history(&space, 1, &[19, 20, 25]), [1, 2, 2]);
}

#[test]
fn the_same_is_told_from_what_took_its_place() {
    let mut space = AddressSpace::default();
    let unchanged = |space: &AddressSpace, from, at| space.is_unchanged_since(PAGE + 8, from, at);
    space.map(10, pages(1, 2, Some(1)));
    assert!(unchanged(&space, 10, 15));
    assert!(!unchanged(&space, 9, 15), "it was not there yet");
    space.map(20, pages(1, 2, Some(2)));
    assert!(!unchanged(&space, 15, 25));
    assert!(unchanged(&space, 12, 15), "what came later does not matter");
    space.map(30, pages(1, 2, Some(1)));
    assert!(!unchanged(&space, 15, 35), "its last sighting was at 10");
    assert!(unchanged(&space, 10, 35), "the same again at the same place");
    let mut moved = pages(1, 2, Some(1));
    moved.file_offset += PAGE;
    space.map(40, moved);
    assert!(!unchanged(&space, 35, 45), "another part of the file");
    assert!(!space.is_unchanged_since(7 * PAGE, 35, 45), "nothing is there");
}

#[test]
fn what_is_kept_is_bounded_and_what_is_given_up_counted() {
    let mut space = AddressSpace::default();
    for time in 0..=MAX_ENDED_RANGES as u64 + 5 {
        space.map(time, pages(1, 2, Some(time as u32)));
    }
    assert_eq!((space.ended.len(), space.forgotten()), (MAX_ENDED_RANGES, 5));
    assert_eq!(file_at(&space, 1, 4), None);
    assert_eq!(file_at(&space, 1, 5), Some(Some(5)));

    let mut space = AddressSpace::default();
    for place in 0..=MAX_LIVE_RANGES as u64 {
        space.map(place, pages(2 * place, 2 * place + 1, None));
    }
    let half = MAX_LIVE_RANGES as u64 / 2;
    assert_eq!((space.live.len() as u64, space.forgotten()), (half + 1, half));
    assert_eq!(file_at(&space, 0, u64::MAX - 1), None, "the one not seen for the longest time");
    assert_eq!(file_at(&space, MAX_LIVE_RANGES as u64 * 2, u64::MAX - 1), Some(None));

    let mut space = AddressSpace::default();
    for _ in 0..2 * MAX_PENDING_EXECS {
        space.replaced(1);
    }
    assert_eq!(space.pending_execs_ns.len(), MAX_PENDING_EXECS);
}

const PAGES: usize = 8;
const TIMES: u64 = 24;

#[derive(Clone, Debug)]
enum Act {
    Map { first: usize, count: usize, file: Option<u32> },
    Unmap { first: usize, count: usize },
    Exec,
    Look,
}

fn act() -> impl Strategy<Value = Act> {
    let place = || (0..PAGES, 1..4_usize);
    prop_oneof![
        6 => (place(), prop::option::weighted(0.8, 0..3_u32))
            .prop_map(|((first, count), file)| Act::Map { first, count, file }),
        3 => place().prop_map(|(first, count)| Act::Unmap { first, count }),
        1 => Just(Act::Exec),
        3 => Just(Act::Look),
    ]
}

/// What is on each page after each act, of which one happens at each time.
fn truth(acts: &[Act]) -> Vec<[Option<Option<u32>>; PAGES]> {
    let mut now = [None; PAGES];
    let mut all = Vec::new();
    for act in acts {
        match *act {
            Act::Map { first, count, file } => {
                now[first..PAGES.min(first + count)].fill(Some(file));
            }
            Act::Unmap { first, count } => now[first..PAGES.min(first + count)].fill(None),
            Act::Exec => now = [None; PAGES],
            Act::Look => {}
        }
        all.push(now);
    }
    all
}

/// What the collector is told of an act.
fn tell(space: &mut AddressSpace, act: &Act, time_ns: u64, now: &[Option<Option<u32>>; PAGES]) {
    match *act {
        Act::Map { first, count, file } => {
            space.map(time_ns, pages(first as u64, PAGES.min(first + count) as u64, file));
        }
        Act::Unmap { .. } => {}
        Act::Exec => space.replaced(time_ns),
        Act::Look => {
            let seen = now
                .iter()
                .enumerate()
                .filter_map(|(page, file)| Some(pages(page as u64, page as u64 + 1, (*file)?)));
            space.observe(&seen.collect::<Vec<_>>(), time_ns, time_ns);
        }
    }
}

/// Whether a page may be taken to hold what it held last: nobody has looked since it was unmapped.
fn may_be_stale(
    acts: &[Act],
    truth: &[[Option<Option<u32>>; PAGES]],
    page: usize,
    time: usize,
    found: Option<u32>,
) -> bool {
    for before in (0..=time).rev() {
        if matches!(acts[before], Act::Look | Act::Exec) {
            return false;
        }
        if before > 0 && truth[before - 1][page].is_some() {
            return truth[before - 1][page] == Some(found);
        }
    }
    false
}

proptest! {
    /// Every act is told at its time: what is mapped is always found, at every moment, and
    /// what is not only as long as nobody could know.
    #[test]
    fn the_timeline_agrees_with_a_table_of_pages(acts in prop::collection::vec(act(), 1..TIMES as usize)) {
        let truth = truth(&acts);
        let mut space = AddressSpace::default();
        for (time, act) in acts.iter().enumerate() {
            tell(&mut space, act, time as u64, &truth[time]);
        }
        for (time, now) in truth.iter().enumerate() {
            for (page, file) in now.iter().enumerate() {
                let found = file_at(&space, page as u64, time as u64);
                match (file, found) {
                    (Some(file), found) => prop_assert_eq!(found, Some(*file), "page {} at {}", page, time),
                    (None, Some(found)) => prop_assert!(
                        may_be_stale(&acts, &truth, page, time, found), "page {} at {}: {:?}", page, time, found
                    ),
                    (None, None) => {}
                }
            }
        }
    }

    /// What is seen and what the kernel tells come on different ways, and either may be late.
    #[test]
    fn observations_may_come_before_and_after_events(
        acts in prop::collection::vec(act(), 1..TIMES as usize),
        delays in prop::collection::vec(0..2 * TIMES, TIMES as usize),
    ) {
        let truth = truth(&acts);
        let mut order: Vec<usize> = (0..acts.len()).collect();
        let told_at = |time: &usize| match acts[*time] {
            Act::Look => *time as u64 + delays[*time],
            _ => *time as u64 + TIMES,
        };
        order.sort_by_key(told_at);
        let mut space = AddressSpace::default();
        for time in order {
            tell(&mut space, &acts[time], time as u64, &truth[time]);
        }
        for (time, now) in truth.iter().enumerate() {
            for (page, file) in now.iter().enumerate().filter_map(|(page, file)| Some((page, (*file)?))) {
                let found = file_at(&space, page as u64, time as u64);
                prop_assert_eq!(found, Some(file), "page {} at {}", page, time);
            }
        }
    }

    /// What is said to be unchanged is so.
    #[test]
    fn unchanged_means_the_same_at_both_times(acts in prop::collection::vec(act(), 1..TIMES as usize)) {
        let truth = truth(&acts);
        let mut space = AddressSpace::default();
        for (time, act) in acts.iter().enumerate() {
            tell(&mut space, act, time as u64, &truth[time]);
        }
        for (at, now) in truth.iter().enumerate() {
            for (from, then) in truth.iter().enumerate().take(at + 1) {
                for (page, file) in now.iter().enumerate().filter(|(_, file)| file.is_some()) {
                    let said = space.is_unchanged_since(page as u64 * PAGE, from as u64, at as u64);
                    // Of what was unmapped and not looked at since, its old state is said.
                    let was = then[page].or_else(|| file_at(&space, page as u64, from as u64));
                    prop_assert!(!said || was == *file, "page {} from {} to {}", page, from, at);
                }
            }
        }
    }
}
