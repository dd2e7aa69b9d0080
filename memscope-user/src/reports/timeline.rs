//! The memory of a process over time, beside what is live in it.

use serde::Serialize;

use crate::{
    lifetimes::Resident,
    model::{MemoryReading, ProcessMemory, ResidentMemory},
};

/// Most points that are kept of a process.
pub const MAX_POINTS: usize = 1024;

/// What a process had at a moment: live blocks, and what the kernel counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPoint {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Blocks live then; none if it was not blocks that were observed.
    pub live: Option<Resident>,
    /// What the kernel counted then.
    pub memory: ProcessMemory,
    /// The last reading of PSS until then.
    pub proportional: Option<Proportional>,
}

/// A reading of PSS, which is read more rarely than all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proportional {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// What it was.
    pub bytes: u64,
}

impl MemoryPoint {
    /// Resident bytes; none if they are not known.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        self.memory.resident.map(|resident| resident.bytes())
    }

    /// How much of what is resident the live blocks explain.
    #[must_use]
    pub fn explained(&self) -> Option<Explained> {
        let live_bytes = self.live?.bytes;
        let resident = self.memory.resident?;
        Some(Explained { time_ns: self.time_ns, live_bytes, resident })
    }
}

/// Live blocks beside resident pages. The former are bytes that were asked for, the latter pages
/// that were touched: a block that was never touched is in the first only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explained {
    /// `CLOCK_MONOTONIC` of the reading.
    pub time_ns: u64,
    /// Sum of the sizes of the live blocks.
    pub live_bytes: u64,
    /// What was resident.
    pub resident: ResidentMemory,
}

/// What a process that ran already had when it was attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AtAttach {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Resident bytes; none if they are not known.
    pub resident_bytes: Option<u64>,
    /// What was in mappings that hold blocks; none if it was not read.
    #[serde(flatten)]
    pub heap: Option<HeapAtAttach>,
}

/// Mappings that hold blocks, and what else is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeapAtAttach {
    /// Size of `[heap]`, which grows by `brk`.
    pub brk_mapped_bytes: u64,
    /// What of it was resident.
    pub brk_resident_bytes: u64,
    /// Sizes of private writable mappings without a file: arenas and large blocks of
    /// allocators, stacks of threads, and what the program mapped itself.
    pub anonymous_mapped_bytes: u64,
    /// What of them was resident.
    pub anonymous_resident_bytes: u64,
}

impl AtAttach {
    fn of(reading: &MemoryReading) -> Self {
        Self {
            time_ns: reading.time_ns,
            resident_bytes: reading.memory.resident.map(|resident| resident.bytes()),
            heap: reading.memory.heap_mappings.as_ref().map(|heap| HeapAtAttach {
                brk_mapped_bytes: heap.brk.mapped_bytes,
                brk_resident_bytes: heap.brk.resident_bytes,
                anonymous_mapped_bytes: heap.anonymous.mapped_bytes,
                anonymous_resident_bytes: heap.anonymous.resident_bytes,
            }),
        }
    }
}

/// All readings of a process, as far as they are kept: about evenly spaced in time if there are
/// too many, and always the first, the last, and that with most resident pages.
#[derive(Clone, Debug, Default)]
pub struct MemoryTimeline {
    points: Vec<MemoryPoint>,
    /// Points are at least so far from each other, but for the last one.
    spacing_ns: u64,
    reading_count: u64,
    peak: Option<MemoryPoint>,
    /// With the time of the last reading that told it.
    peak_resident: Option<(u64, u64)>,
    at_attach: Option<AtAttach>,
}

impl MemoryTimeline {
    /// Adds a reading, what was live when it was made, and whether the process ran already when
    /// it was attached to.
    pub fn add(&mut self, reading: &MemoryReading, live: Resident, has_run: bool) {
        self.reading_count += 1;
        let (time_ns, memory) = (reading.time_ns, reading.memory.clone());
        let read = memory.proportional_bytes.map(|bytes| Proportional { time_ns, bytes });
        let before = self.points.last().and_then(|point| point.proportional);
        let proportional = read.or(before);
        let point = MemoryPoint { time_ns, live: Some(live), memory, proportional };
        if has_run && self.reading_count == 1 {
            self.at_attach = Some(AtAttach::of(reading));
        }
        if let Some(bytes) = point.memory.peak_resident_bytes {
            let before = self.peak_resident.map_or(0, |(bytes, _)| bytes);
            self.peak_resident = Some((bytes.max(before), time_ns));
        }
        let peak_bytes = self.peak.as_ref().and_then(MemoryPoint::resident_bytes);
        if self.peak.is_none() || point.resident_bytes() > peak_bytes {
            self.peak = Some(point.clone());
        }
        if let [.., before, last] = &*self.points
            && last.time_ns.saturating_sub(before.time_ns) < self.spacing_ns
        {
            self.points.pop();
        }
        self.points.push(point);
        if self.points.len() > MAX_POINTS {
            self.thin();
        }
    }

    /// It was not blocks that were observed, so how many lived is not known.
    pub fn forget_blocks(&mut self) {
        for point in self.points.iter_mut().chain(&mut self.peak) {
            point.live = None;
        }
    }

    /// Leaves about half of the points.
    fn thin(&mut self) {
        let ([first, ..], [.., last]) = (&*self.points, &*self.points) else { return };
        let (mut kept_ns, last_ns) = (first.time_ns, last.time_ns);
        let even_ns = last_ns.saturating_sub(kept_ns) / (MAX_POINTS as u64 / 2);
        let spacing_ns = even_ns.max(self.spacing_ns.saturating_mul(2)).max(1);
        let count = self.points.len();
        let mut index = 0;
        self.points.retain(|point| {
            index += 1;
            let is_far = point.time_ns.saturating_sub(kept_ns) >= spacing_ns;
            if is_far {
                kept_ns = point.time_ns;
            }
            is_far || index == 1 || index == count
        });
        self.spacing_ns = spacing_ns;
        // Only times that run backwards, in a forged recording, leave more.
        self.points.truncate(MAX_POINTS);
    }

    /// Those that are kept, in the order of time.
    #[must_use]
    pub fn points(&self) -> &[MemoryPoint] {
        &self.points
    }

    /// How many readings there were.
    #[must_use]
    pub fn reading_count(&self) -> u64 {
        self.reading_count
    }

    /// The first of those with most resident pages.
    #[must_use]
    pub fn peak(&self) -> Option<&MemoryPoint> {
        self.peak.as_ref()
    }

    /// The most that was resident up to the last reading that told it, by the kernel's own
    /// account: also between readings. What came after it, before the process ended, is not in it.
    #[must_use]
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        self.peak_resident.map(|(bytes, _)| bytes)
    }

    /// When that was, `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn peak_resident_until_ns(&self) -> Option<u64> {
        self.peak_resident.map(|(_, time_ns)| time_ns)
    }

    /// What there was when the process was attached to; none if it was started by memscope.
    #[must_use]
    pub fn at_attach(&self) -> Option<&AtAttach> {
        self.at_attach.as_ref()
    }

    /// What the live blocks explain at the last reading. None if nothing was read while the
    /// process ran: before a command's first instruction there is nothing to explain.
    #[must_use]
    pub fn explained(&self) -> Option<Explained> {
        let has_run = self.reading_count > 1 || self.at_attach.is_some();
        self.points.last().filter(|_| has_run)?.explained()
    }

    /// At most so many points, evenly spread, the first and the last among them, and that with
    /// most resident pages beside them.
    #[must_use]
    pub fn rows(&self, most: usize) -> Vec<&MemoryPoint> {
        let (points, most) = (&self.points, most.max(2));
        let (last, steps) = (points.len().saturating_sub(1), most - 1);
        let mut rows: Vec<&MemoryPoint> = if points.len() <= most {
            points.iter().collect()
        } else {
            (0..most).filter_map(|step| points.get(step * last / steps)).collect()
        };
        if let Some(peak) = &self.peak
            && !rows.contains(&peak)
        {
            let position = rows.partition_point(|row| row.time_ns < peak.time_ns);
            rows.insert(position, peak);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{HeapMappings, ProcessId};

    fn reading(time_ns: u64, resident_bytes: u64) -> MemoryReading {
        let resident = ResidentMemory { anonymous_bytes: resident_bytes, ..Default::default() };
        let memory = ProcessMemory { resident: Some(resident), ..Default::default() };
        MemoryReading { process: ProcessId(1), time_ns, memory }
    }

    fn live(bytes: u64) -> Resident {
        Resident { blocks: 1, bytes }
    }

    fn times(timeline: &MemoryTimeline) -> Vec<u64> {
        timeline.points().iter().map(|point| point.time_ns).collect()
    }

    #[test]
    fn few_points_are_all_kept() {
        let mut timeline = MemoryTimeline::default();
        let all: Vec<u64> = (0..MAX_POINTS as u64).map(|number| number * 100 + 7).collect();
        all.iter().for_each(|time_ns| timeline.add(&reading(*time_ns, 5), live(3), false));
        assert_eq!(times(&timeline), all);
        timeline.add(&reading(1 << 40, 5), live(3), false);
        let kept = times(&timeline);
        assert!(kept.len() <= MAX_POINTS / 2 + 2, "{}", kept.len());
        assert_eq!((kept[0], *kept.last().unwrap()), (7, 1 << 40));
    }

    proptest! {
        #[test]
        fn however_many_the_kept_are_few_even_and_have_the_ends(gaps in prop::collection::vec(prop_oneof![9 => 1..5_u64, 1 => 1..4000_u64], 1..9000), peak in any::<prop::sample::Index>()) {
            let mut timeline = MemoryTimeline::default();
            let (mut now, peak, mut all) = (0, peak.index(gaps.len()), Vec::new());
            for (index, gap) in gaps.iter().enumerate() {
                now += gap;
                all.push(now);
                timeline.add(&reading(now, if index == peak { 9 } else { 5 }), live(index as u64), false);
            }
            let kept = times(&timeline);
            prop_assert!(kept.len() <= MAX_POINTS);
            prop_assert_eq!((kept[0], *kept.last().unwrap()), (all[0], now));
            prop_assert!(kept.is_sorted() && kept.iter().all(|time| all.contains(time)));
            prop_assert_eq!(timeline.peak().unwrap().time_ns, all[peak]);
            prop_assert_eq!(timeline.reading_count(), gaps.len() as u64);
            let spacing = timeline.spacing_ns;
            let inner = &kept[..kept.len() - 1];
            prop_assert!(inner.windows(2).all(|pair| pair[1] - pair[0] >= spacing));
            // No gap is longer than thinning and the readings themselves explain.
            let longest = gaps.iter().max().unwrap() + 2 * spacing;
            prop_assert!(kept.windows(2).all(|pair| pair[1] - pair[0] <= longest));
            let rows = timeline.rows(10);
            prop_assert!(rows.len() <= 11 && rows.iter().any(|row| row.time_ns == all[peak]));
            prop_assert!(rows.is_sorted_by_key(|row| row.time_ns));
            prop_assert_eq!((rows[0].time_ns, rows[rows.len() - 1].time_ns), (all[0], now));
        }

        #[test]
        fn any_times_are_taken(times in prop::collection::vec(any::<u64>(), 0..3000)) {
            let mut timeline = MemoryTimeline::default();
            times.iter().for_each(|time| timeline.add(&reading(*time, *time), live(*time), false));
            prop_assert!(timeline.points().len() <= MAX_POINTS);
            prop_assert!(timeline.rows(7).len() <= 8);
        }
    }

    #[test]
    fn what_live_blocks_explain_is_that_of_the_last_reading() {
        let mut timeline = MemoryTimeline::default();
        timeline.add(&reading(1, 100), live(0), false);
        assert_eq!(timeline.explained(), None, "it has not run");
        timeline.add(&reading(2, 400), live(100), false);
        timeline.add(&reading(3, 200), live(300), false);
        let explained = timeline.explained().unwrap();
        assert_eq!((explained.live_bytes, explained.resident.bytes()), (300, 200));
        assert_eq!(timeline.peak().unwrap().time_ns, 2);
        timeline.add(
            &MemoryReading { memory: ProcessMemory::default(), ..reading(4, 0) },
            live(300),
            false,
        );
        assert_eq!(timeline.explained(), None, "what is resident is not known");
    }

    #[test]
    fn the_share_of_pages_is_that_of_its_last_reading() {
        let mut timeline = MemoryTimeline::default();
        for (time_ns, proportional_bytes) in [(1, None), (2, Some(70)), (3, None), (4, Some(90))] {
            let mut reading = reading(time_ns, 100);
            reading.memory.proportional_bytes = proportional_bytes;
            timeline.add(&reading, live(1), false);
        }
        let known: Vec<_> = timeline
            .points()
            .iter()
            .map(|point| point.proportional.map(|read| (read.time_ns, read.bytes)))
            .collect();
        assert_eq!(known, [None, Some((2, 70)), Some((2, 70)), Some((4, 90))]);
    }

    #[test]
    fn what_there_was_at_the_attach_is_kept() {
        let mut timeline = MemoryTimeline::default();
        let sizes = |mapped_bytes, resident_bytes| crate::model::MappedMemory {
            mapped_bytes,
            resident_bytes,
        };
        let mut first = reading(5, 100);
        first.memory.heap_mappings =
            Some(HeapMappings { brk: sizes(40, 30), anonymous: sizes(60, 50) });
        timeline.add(&first, live(0), true);
        timeline.add(&reading(6, 170), live(60), true);
        let at_attach = timeline.at_attach().unwrap();
        assert_eq!((at_attach.time_ns, at_attach.resident_bytes), (5, Some(100)));
        let heap = at_attach.heap.unwrap();
        assert_eq!((heap.brk_mapped_bytes, heap.anonymous_resident_bytes), (40, 50));
        assert_eq!(timeline.explained().unwrap().live_bytes, 60);
    }
}
