//! Records are written as the eBPF side does it, into files instead of maps.

use std::{
    fs::File,
    os::fd::AsFd as _,
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};
use memscope_common::{
    control::{CpuRing, SPARE_SLOTS, Slot},
    record::{KIND_FREE, KIND_SMALL_FREE, kind_and_time},
};
use proptest::prelude::*;

use super::*;

const CPUS: usize = 3;
const SLOTS_LOG2: u32 = 6;
const SLOTS: u64 = 1 << SLOTS_LOG2;
const RING_BYTES: usize = 4096;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Header, probe and time, and what the tests tell records apart by.
const RECORD_BYTES: usize = 24;
const NO_LIMIT: usize = usize::MAX;
const FOREVER: u64 = u64::MAX;

/// The eBPF side.
struct Writer {
    consumer: MmapRaw,
    producer: MmapRaw,
    slots: MmapRaw,
    rings: MmapRaw,
    page_bytes: usize,
    reserving: Mutex<()>,
}

/// A place that was reserved in the ring buffer.
#[derive(Clone, Copy)]
struct Reserved(u64);

fn file(bytes: usize) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes as u64).unwrap();
    file
}

fn whole(file: &File, offset: usize, bytes: usize) -> MmapRaw {
    MmapOptions::new().offset(offset as u64).len(bytes).map_raw(file).unwrap()
}

fn new() -> (Writer, Sources) {
    let page_bytes = crate::kernel::load::page_bytes() as usize;
    let buffer = file(2 * page_bytes + 2 * RING_BYTES);
    let slots = file((CPUS * size_of::<Slot>()) << SLOTS_LOG2);
    let rings = file(CPUS * size_of::<CpuRing>());
    let writer = Writer {
        consumer: whole(&buffer, 0, page_bytes),
        producer: whole(&buffer, page_bytes, page_bytes + 2 * RING_BYTES),
        slots: whole(&slots, 0, (CPUS * size_of::<Slot>()) << SLOTS_LOG2),
        rings: whole(&rings, 0, CPUS * size_of::<CpuRing>()),
        page_bytes,
        reserving: Mutex::new(()),
    };
    let sources = Sources {
        buffer: RingBuffer::map(buffer.as_fd(), RING_BYTES as u32).unwrap(),
        slots: Slots::map(slots.as_fd(), rings.as_fd(), CPUS as u32, SLOTS_LOG2).unwrap(),
    };
    (writer, sources)
}

fn word(memory: &MmapRaw, offset: usize) -> &AtomicU64 {
    assert!(offset.is_multiple_of(8) && offset + 8 <= memory.len());
    // SAFETY: the word lies in the mapping, which lives as long as what is given.
    unsafe { &*memory.as_mut_ptr().add(offset).cast::<AtomicU64>() }
}

impl Writer {
    fn head(&self, cpu: usize) -> &AtomicU64 {
        word(&self.rings, cpu * size_of::<CpuRing>() + std::mem::offset_of!(CpuRing, head))
    }

    fn tail(&self, cpu: usize) -> u64 {
        word(&self.rings, cpu * size_of::<CpuRing>() + std::mem::offset_of!(CpuRing, tail))
            .load(Ordering::Acquire)
    }

    fn take_slot(&self, cpu: usize) -> u64 {
        self.head(cpu).fetch_add(1, Ordering::AcqRel)
    }

    /// As `send_small` does it: only if there is room.
    fn take_slot_if_free(&self, cpu: usize) -> Option<u64> {
        let waiting = self.head(cpu).load(Ordering::Acquire) - self.tail(cpu);
        (waiting + SPARE_SLOTS < SLOTS).then(|| self.take_slot(cpu))
    }

    fn write_slot(&self, cpu: usize, number: u64, time_ns: u64, id: u64) {
        let slot = (cpu as u64 * SLOTS + number % SLOTS) as usize * size_of::<Slot>();
        let words = [kind_and_time(KIND_SMALL_FREE, time_ns), id, 0, number + 1];
        for (index, value) in words.into_iter().enumerate() {
            word(&self.slots, slot + 8 * index).store(value, Ordering::Release);
        }
    }

    fn small(&self, cpu: usize, time_ns: u64, id: u64) {
        self.write_slot(cpu, self.take_slot(cpu), time_ns, id);
    }

    fn reserve(&self) -> Option<Reserved> {
        let _one_at_a_time = self.reserving.lock().unwrap();
        let position = word(&self.producer, 0);
        let begin = position.load(Ordering::Acquire);
        let end = begin + 8 + RECORD_BYTES as u64;
        let read = word(&self.consumer, 0).load(Ordering::Acquire);
        if end - read > RING_BYTES as u64 {
            return None;
        }
        self.set_header(Reserved(begin), BUSY);
        position.store(end, Ordering::Release);
        Some(Reserved(begin))
    }

    fn set_header(&self, place: Reserved, flags: u32) {
        for copy in self.copies(place.0) {
            // SAFETY: as in `word`; each header begins a word.
            let header = unsafe { &*self.producer.as_mut_ptr().add(copy).cast::<AtomicU32>() };
            header.store(RECORD_BYTES as u32 | flags, Ordering::Release);
        }
    }

    /// The kernel maps the records twice, the second after the first.
    fn copies(&self, position: u64) -> [usize; 2] {
        let first = self.page_bytes + position as usize % RING_BYTES;
        [first, first + RING_BYTES]
    }

    fn submit(&self, place: Reserved, time_ns: u64, id: u64) {
        for (index, value) in [KIND_FREE.into(), time_ns, id].into_iter().enumerate() {
            for copy in self.copies(place.0 + 8 + 8 * index as u64) {
                word(&self.producer, copy).store(value, Ordering::Release);
            }
        }
        self.set_header(place, 0);
    }

    fn large(&self, time_ns: u64, id: u64) {
        self.submit(self.reserve().unwrap(), time_ns, id);
    }
}

/// Time and id of a record.
fn told(record: RawRecord<'_>) -> (u64, u64) {
    match record {
        RawRecord::Small([kind_and_time, id, _]) => (kind_and_time >> 4, id),
        RawRecord::Large(bytes) => {
            assert_eq!(bytes.len(), RECORD_BYTES);
            let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
            (word(8), word(16))
        }
    }
}

/// Ids of what there is, with the times.
fn drain(sources: &mut Sources, until_ns: u64, limit: usize) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let count = sources.drain(until_ns, limit, NO_LIMIT, |record| found.push(told(record)));
    assert_eq!(count, found.len());
    found
}

fn ids(sources: &mut Sources, until_ns: u64) -> Vec<u64> {
    drain(sources, until_ns, NO_LIMIT).into_iter().map(|(_, id)| id).collect()
}

#[test]
fn records_come_by_their_times_wherever_they_wait() {
    let (writer, mut sources) = new();
    writer.small(0, 10, 1);
    writer.small(0, 40, 4);
    writer.small(1, 20, 2);
    writer.large(30, 3);
    writer.small(2, 50, 5);
    writer.large(60, 6);
    assert!(!sources.buffer.is_empty() && !sources.slots.is_empty());
    assert_eq!(ids(&mut sources, FOREVER), [1, 2, 3, 4, 5, 6]);
    assert!(sources.buffer.is_empty() && sources.slots.is_empty());
    assert_eq!(ids(&mut sources, FOREVER), [0; 0]);
}

#[test]
fn of_equal_times_what_others_refer_to_comes_first() {
    let (writer, mut sources) = new();
    writer.small(1, 10, 3);
    writer.small(0, 10, 2);
    writer.small(0, 10, 20);
    writer.large(10, 0);
    writer.large(10, 1);
    writer.small(2, 9, 100);
    assert_eq!(ids(&mut sources, FOREVER), [100, 0, 1, 2, 20, 3]);
}

#[test]
fn those_of_the_last_moment_are_left() {
    let (writer, mut sources) = new();
    writer.small(0, 10, 1);
    writer.large(20, 2);
    writer.small(1, 21, 3);
    writer.large(22, 4);
    assert_eq!(ids(&mut sources, 20), [1, 2]);
    assert_eq!(ids(&mut sources, 20), [0; 0]);
    assert_eq!(ids(&mut sources, 21), [3]);
    assert_eq!(ids(&mut sources, 22), [4]);
}

#[test]
fn a_slot_that_is_not_written_holds_back_what_may_come_of_those_behind_it() {
    let (writer, mut sources) = new();
    writer.small(0, 10, 1);
    let unwritten = writer.take_slot(0);
    writer.small(0, 30, 3);
    writer.small(1, 9, 0);
    writer.small(1, 40, 4);
    writer.large(50, 5);
    assert_eq!(ids(&mut sources, FOREVER), [0, 1], "up to the last that is known of that CPU");
    assert_eq!(ids(&mut sources, FOREVER), [0; 0]);
    assert!(!sources.slots.is_empty());
    writer.write_slot(0, unwritten, 20, 2);
    assert_eq!(ids(&mut sources, FOREVER), [2, 3, 4, 5]);
}

#[test]
fn a_record_of_the_buffer_that_is_not_written_holds_back_what_may_come_of_those_behind_it() {
    let (writer, mut sources) = new();
    writer.large(10, 1);
    let unwritten = writer.reserve().unwrap();
    writer.large(30, 3);
    writer.small(0, 9, 0);
    writer.small(1, 40, 4);
    assert_eq!(ids(&mut sources, FOREVER), [0, 1]);
    writer.submit(unwritten, 20, 2);
    assert_eq!(ids(&mut sources, FOREVER), [2, 3, 4]);
}

#[test]
fn records_that_were_given_up_are_passed_over() {
    let (writer, mut sources) = new();
    let given_up = [writer.reserve().unwrap(), writer.reserve().unwrap()];
    writer.small(0, 5, 1);
    writer.large(10, 2);
    for place in given_up {
        writer.set_header(place, DISCARDED);
    }
    assert_eq!(ids(&mut sources, FOREVER), [1, 2]);
    let last = writer.reserve().unwrap();
    writer.set_header(last, DISCARDED);
    assert_eq!(ids(&mut sources, FOREVER), [0; 0]);
    assert!(sources.buffer.is_empty(), "and their room is given back");
    assert_eq!(word(&writer.consumer, 0).load(Ordering::Acquire), 4 * 32);
}

#[test]
fn what_is_taken_while_the_slots_are_read_waits_for_the_next_round() {
    let (writer, mut sources) = new();
    writer.small(0, 10, 1);
    let mut found = Vec::new();
    sources.drain(FOREVER, NO_LIMIT, NO_LIMIT, |record| {
        found.push(told(record));
        if found.len() == 1 {
            // Its frames, and an event with these frames: the buffer has been looked at.
            writer.large(20, 2);
            writer.small(0, 20, 3);
        }
    });
    found.extend(drain(&mut sources, FOREVER, NO_LIMIT));
    assert_eq!(found, [(10, 1), (20, 2), (20, 3)]);
}

#[test]
fn room_is_given_back_as_far_as_was_read() {
    let (writer, mut sources) = new();
    (0..4).for_each(|number| writer.small(0, number, number));
    (4..8).for_each(|number| writer.large(number, number));
    let times: Vec<u64> = drain(&mut sources, FOREVER, 3).iter().map(|(time, _)| *time).collect();
    assert_eq!((times, writer.tail(0)), (vec![0, 1, 2], 3));
    let mut count = 0;
    sources.drain(FOREVER, NO_LIMIT, RECORD_BYTES + 1, |_| count += 1);
    assert_eq!(count, 3, "one from a slot, and two until their bytes are too many");
    assert_eq!(writer.tail(0), 4);
    assert_eq!(word(&writer.consumer, 0).load(Ordering::Acquire), 2 * 32);
    assert_eq!(sources.slots.taken(), 4);
    assert_eq!(ids(&mut sources, FOREVER), [6, 7]);
}

#[test]
fn many_laps_are_read_one_after_the_other() {
    let (writer, mut sources) = new();
    for time_ns in 0..10 * SLOTS {
        if time_ns % 3 == 0 {
            writer.large(time_ns, time_ns);
        } else {
            writer.small(1, time_ns, time_ns);
        }
        if time_ns % 40 == 39 {
            assert_eq!(ids(&mut sources, FOREVER), Vec::from_iter(time_ns - 39..=time_ns));
        }
    }
    assert_eq!(sources.slots.overwritten(), 0);
}

#[test]
fn slots_that_were_taken_again_before_they_were_read_are_counted() {
    let (writer, mut sources) = new();
    for time_ns in 0..SLOTS + 5 {
        writer.small(2, time_ns, time_ns);
    }
    assert_eq!(ids(&mut sources, FOREVER), Vec::from_iter(5..SLOTS + 5));
    assert_eq!((sources.slots.overwritten(), sources.slots.taken()), (5, SLOTS + 5));
    writer.small(2, 100, 7);
    assert_eq!(ids(&mut sources, FOREVER), [7], "and then it goes on");
}

/// One record: where it goes, how long after the one before, and how many further ones come
/// before it is written.
type Step = (usize, u64, usize);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let late = prop_oneof![4 => Just(0), 1 => 1..12_usize];
    prop::collection::vec((0..=CPUS, 1..5_u64, late), 1..400)
}

enum Unwritten {
    Slot { cpu: usize, number: u64 },
    Large(Reserved),
}

proptest! {
    #[test]
    fn all_that_had_room_comes_once_and_in_order(steps in steps(), every in 1..60_usize) {
        let (writer, mut sources) = new();
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        let mut waiting: Vec<(usize, Unwritten, u64)> = Vec::new();
        let write = |place, time_ns| match place {
            Unwritten::Slot { cpu, number } => writer.write_slot(cpu, number, time_ns, time_ns),
            Unwritten::Large(place) => writer.submit(place, time_ns, time_ns),
        };
        let mut time_ns = 0;
        for (index, (source, after_ns, late)) in steps.into_iter().enumerate() {
            time_ns += after_ns;
            let place = if source == CPUS {
                writer.reserve().map(Unwritten::Large)
            } else {
                let number = writer.take_slot_if_free(source);
                number.map(|number| Unwritten::Slot { cpu: source, number })
            };
            if let Some(place) = place {
                expected.push((time_ns, time_ns));
                waiting.push((index + late, place, time_ns));
            }
            let now: Vec<_> = waiting.extract_if(.., |(until, ..)| *until <= index).collect();
            now.into_iter().for_each(|(_, place, time_ns)| write(place, time_ns));
            if index % every == 0 {
                found.extend(drain(&mut sources, time_ns, every));
            }
        }
        waiting.into_iter().for_each(|(_, place, time_ns)| write(place, time_ns));
        found.extend(drain(&mut sources, FOREVER, NO_LIMIT));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(sources.slots.overwritten(), 0);
    }

    #[test]
    fn of_equal_times_the_buffers_come_first_and_each_source_keeps_its_order(
        steps in prop::collection::vec((0..=CPUS, 0..3_u64), 1..SLOTS as usize),
        limit in 1..9_usize,
    ) {
        let (writer, mut sources) = new();
        let mut time_ns = 0;
        for (id, (source, after_ns)) in (0..).zip(&steps) {
            time_ns += after_ns;
            match source.checked_sub(1) {
                Some(cpu) => writer.small(cpu, time_ns, id),
                None => writer.large(time_ns, id),
            }
        }
        let mut found = Vec::new();
        while found.len() < steps.len() {
            let more = drain(&mut sources, FOREVER, limit);
            prop_assert!(!more.is_empty() && more.len() <= limit);
            found.extend(more);
        }
        let source_of = |id: u64| steps[id as usize].0;
        let order = found.iter().map(|(time_ns, id)| (*time_ns, source_of(*id) > 0));
        prop_assert!(order.is_sorted(), "{found:?}");
        for source in 0..=CPUS {
            let of_source = found.iter().map(|(_, id)| *id).filter(|id| source_of(*id) == source);
            let written = (0..steps.len() as u64).filter(|id| source_of(*id) == source);
            prop_assert!(of_source.eq(written), "{found:?}");
        }
    }
}

/// Each record of a chain is made by another thread once it knows that the one before was
/// written, as a free follows the allocation of its block.
#[test]
fn consequences_come_after_their_causes_while_others_write() {
    const LINKS: u64 = 3000;
    let (writer, mut sources) = new();
    let turn = AtomicU64::new(0);
    let mut chain = Vec::new();
    std::thread::scope(|scope| {
        for source in 0..=CPUS {
            let (writer, turn) = (&writer, &turn);
            scope.spawn(move || {
                loop {
                    let link = turn.load(Ordering::Acquire);
                    if link >= LINKS {
                        return;
                    }
                    if link as usize * 7 % (CPUS + 1) != source {
                        std::thread::yield_now();
                        continue;
                    }
                    let time_ns = monotonic_ns();
                    if source == CPUS {
                        let Some(place) = writer.reserve() else { continue };
                        writer.submit(place, time_ns, link);
                    } else {
                        let Some(number) = writer.take_slot_if_free(source) else { continue };
                        writer.write_slot(source, number, time_ns, link);
                    }
                    turn.store(link + 1, Ordering::Release);
                }
            });
        }
        while (chain.len() as u64) < LINKS {
            let found = drain(&mut sources, monotonic_ns(), NO_LIMIT);
            chain.extend(found.into_iter().map(|(_, id)| id));
        }
    });
    assert_eq!(chain, Vec::from_iter(0..LINKS));
}
