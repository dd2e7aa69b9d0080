//! Random valid histories against a model that recomputes everything naively.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::{ThreadRecord, Totals, Tracker};
use crate::model::{
    AllocatorId, Event, FreeCaller, OwnerEvidence, ProbeId, ProbeOwner, ProcessId, StackId,
    ThreadId,
};

#[derive(Clone, Copy, Debug)]
struct ModelBlock {
    id: u64,
    size_bytes: u64,
    site: u32,
    thread: u32,
}

#[derive(Clone, Copy, Debug)]
struct ModelReallocation {
    old: u64,
    /// The old address was given out again.
    taken: bool,
}

/// One process of the model: what an allocator and its threads know.
#[derive(Debug, Default)]
struct ModelProcess {
    live: BTreeMap<u64, ModelBlock>,
    under_way: BTreeMap<u32, ModelReallocation>,
    last_allocation: BTreeMap<u32, u64>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Model {
    processes: BTreeMap<u32, ModelProcess>,
    totals: Totals,
    next_id: u64,
    now_ns: u64,
    at_peak: BTreeMap<(u32, u32), u64>,
    events: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Event(Event),
    End(ProcessId),
}

/// A random choice; what it means depends on what is possible.
type Choice = (u8, u32, u32, u64, u64, u32);

impl Model {
    fn step(&mut self, (kind, process, thread, place, size_bytes, site): Choice) {
        self.now_ns += 1;
        let state = self.processes.entry(process).or_default();
        if state.ended {
            return;
        }
        let busy = state.under_way.contains_key(&thread);
        match kind {
            0..50 if !busy => self.malloc(process, thread, place, size_bytes, site),
            50..80 if !busy => self.free(process, thread, place),
            80..90 if !busy => self.begin(process, thread, place),
            0..90 => self.finish(process, thread, place, size_bytes, site),
            90..95 if !busy => {
                state.last_allocation.remove(&thread);
                let (process, thread) = (ProcessId(process), ThreadId(thread));
                self.push(Event::ThreadExit { process, thread, time_ns: self.now_ns });
            }
            99 if place == 0 => {
                state.ended = true;
                self.events.push(Step::End(ProcessId(process)));
            }
            _ => {}
        }
        self.note_peak();
    }

    fn push(&mut self, event: Event) {
        self.events.push(Step::Event(event));
    }

    fn begin_block(&mut self, process: u32, thread: u32, at: u64, size_bytes: u64, site: u32) {
        self.next_id += 1;
        let state = self.processes.get_mut(&process).unwrap();
        let block = ModelBlock { id: self.next_id, size_bytes, site, thread };
        assert!(state.live.insert(at, block).is_none(), "the generator gives out a live address");
        state.last_allocation.insert(thread, self.next_id);
        self.totals.allocations += 1;
        self.totals.allocated_bytes += size_bytes;
    }

    fn end_block(&mut self, process: u32, at: u64, by: u32) {
        let state = self.processes.get_mut(&process).unwrap();
        let block = state.live.remove(&at).unwrap();
        let temporary = block.thread == by && state.last_allocation.get(&by) == Some(&block.id);
        self.totals.frees += 1;
        self.totals.freed_bytes += block.size_bytes;
        self.totals.temporary_allocations += u64::from(temporary);
    }

    fn malloc(&mut self, process: u32, thread: u32, place: u64, size_bytes: u64, site: u32) {
        let at = 0x10 * (1 + place);
        let state = self.processes.get_mut(&process).unwrap();
        let mover = state.under_way.iter().find(|(_, call)| call.old == at && !call.taken);
        let mover = mover.map(|(thread, _)| *thread);
        if state.live.contains_key(&at) {
            let Some(mover) = mover else { return };
            state.under_way.get_mut(&mover).unwrap().taken = true;
            self.end_block(process, at, mover);
        }
        self.begin_block(process, thread, at, size_bytes, site);
        self.push(Event::Allocation {
            process: ProcessId(process),
            thread: ThreadId(thread),
            time_ns: self.now_ns,
            address_avma: at,
            size_bytes,
            stack: StackId(site),
            probe: ProbeId(0),
            interval_bytes: 0,
        });
    }

    /// A live block that no reallocation works on.
    fn settled(&self, process: u32, place: u64) -> Option<u64> {
        let state = &self.processes[&process];
        let busy: BTreeSet<_> =
            state.under_way.values().filter(|call| !call.taken).map(|call| call.old).collect();
        let settled: Vec<_> = state.live.keys().filter(|at| !busy.contains(at)).collect();
        settled.get(place as usize % settled.len().max(1)).map(|at| **at)
    }

    fn free(&mut self, process: u32, thread: u32, place: u64) {
        let Some(at) = self.settled(process, place) else {
            return;
        };
        self.end_block(process, at, thread);
        self.push(Event::Free {
            process: ProcessId(process),
            thread: ThreadId(thread),
            time_ns: self.now_ns,
            address_avma: at,
            probe: None,
            caller: if place.is_multiple_of(2) {
                FreeCaller::Program
            } else {
                FreeCaller::AllocatorModule
            },
        });
    }

    fn begin(&mut self, process: u32, thread: u32, place: u64) {
        let Some(old) = self.settled(process, place) else {
            return;
        };
        let state = self.processes.get_mut(&process).unwrap();
        state.under_way.insert(thread, ModelReallocation { old, taken: false });
        self.push(Event::ReallocationBegin {
            process: ProcessId(process),
            thread: ThreadId(thread),
            time_ns: self.now_ns,
            old_address_avma: old,
            probe: None,
        });
    }

    fn finish(&mut self, process: u32, thread: u32, place: u64, size_bytes: u64, site: u32) {
        let state = self.processes.get_mut(&process).unwrap();
        let call = state.under_way.remove(&thread).unwrap();
        let wanted = 0x10 * (1 + place);
        let vacant = !state.live.contains_key(&wanted);
        let (new, size_bytes) = match place % 4 {
            _ if call.taken || place.is_multiple_of(4) => {
                (if vacant { wanted } else { 0x10 * (1000 + self.next_id) }, size_bytes)
            }
            1 => (call.old, size_bytes),
            2 => (0, 0),
            _ => (0, size_bytes + 1),
        };
        if new != 0 || size_bytes == 0 {
            if !call.taken {
                self.end_block(process, call.old, thread);
            }
            if new != 0 {
                self.totals.reallocations += 1;
                self.begin_block(process, thread, new, size_bytes, site);
            }
        } else {
            self.totals.failed_allocations += 1;
        }
        self.push(Event::ReallocationEnd {
            process: ProcessId(process),
            thread: ThreadId(thread),
            time_ns: self.now_ns,
            old_address_avma: call.old,
            new_address_avma: new,
            size_bytes,
            stack: StackId(site),
            probe: ProbeId(0),
            interval_bytes: 0,
        });
    }

    fn note_peak(&mut self) {
        let mut by_site: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        let (mut blocks, mut bytes) = (0, 0);
        for (process, state) in self.processes.iter().filter(|(_, state)| !state.ended) {
            for block in state.live.values() {
                blocks += 1;
                bytes += block.size_bytes;
                *by_site.entry((*process, block.site)).or_default() += block.size_bytes;
            }
        }
        if bytes > self.totals.peak_live_bytes {
            self.totals.peak_live_bytes = bytes;
            self.totals.peak_live_blocks = blocks;
            self.totals.peak_time_ns = self.now_ns;
            self.at_peak = by_site;
        }
    }

    fn finished_totals(&self) -> Totals {
        Totals {
            live_blocks: self.totals.allocations - self.totals.frees,
            live_bytes: self.totals.allocated_bytes - self.totals.freed_bytes,
            ..self.totals
        }
    }
}

fn histories() -> impl Strategy<Value = Vec<Choice>> {
    let choice = (0..100_u8, 1..3_u32, 1..5_u32, 0..12_u64, 0..1000_u64, 0..4_u32);
    prop::collection::vec(choice, 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_tracker_agrees_with_the_naive_model(history in histories()) {
        let mut model = Model::default();
        history.into_iter().for_each(|choice| model.step(choice));
        let mut tracker = Tracker::new();
        let (mut ended_blocks, mut ended_bytes) = (0, 0);
        for step in &model.events {
            match step {
                Step::Event(event) => tracker.apply(event, |block| {
                    ended_blocks += 1;
                    ended_bytes += block.block.size_bytes;
                }),
                Step::End(process) => tracker.end_process(*process),
            }
        }
        let totals = tracker.totals();
        prop_assert_eq!(totals, model.finished_totals());
        prop_assert_eq!((ended_blocks, ended_bytes), (totals.frees, totals.freed_bytes));

        let live: BTreeMap<_, _> = tracker
            .live_blocks()
            .map(|(process, at, block)| ((process.0, at), block.size_bytes))
            .collect();
        let expected: BTreeMap<_, _> = model
            .processes
            .iter()
            .flat_map(|(process, state)| state.live.iter().map(|(at, block)| ((*process, *at), block.size_bytes)))
            .collect();
        prop_assert_eq!(live, expected);
        for (process, state) in &model.processes {
            let of_process = tracker.live_of(ProcessId(*process));
            let bytes: u64 = state.live.values().map(|block| block.size_bytes).sum();
            prop_assert_eq!((of_process.blocks, of_process.bytes), (state.live.len() as u64, bytes));
        }

        let sites = tracker.sites();
        for site in &sites {
            let key = (site.key.process.0, site.key.stack.0);
            prop_assert_eq!(site.at_peak.bytes, model.at_peak.get(&key).copied().unwrap_or(0), "at peak of {:?}", key);
        }
        let sum = |number: fn(&crate::lifetimes::Site) -> u64| sites.iter().map(number).sum::<u64>();
        prop_assert_eq!(sum(|site| site.at_peak.bytes), totals.peak_live_bytes);
        prop_assert_eq!(sum(|site| site.at_peak.blocks), totals.peak_live_blocks);
        prop_assert_eq!(sum(|site| site.sums.allocations), totals.allocations);
        prop_assert_eq!(sum(|site| site.sums.live_bytes()), totals.live_bytes);
        prop_assert_eq!(sum(|site| site.sums.failed_allocations), totals.failed_allocations);
    }

    /// Any events at all, as a forged recording can have them: no panic, and the
    /// laws hold.
    #[test]
    fn nonsense_keeps_the_laws(events in prop::collection::vec((0..6_u8, 0..2_u32, 0..3_u32, 0..4_u64, 0..4_u64, any::<u64>(), 0..3_u32), 0..200)) {
        let mut tracker = Tracker::new();
        for number in 0..4 {
            let (probe, allocator) = (ProbeId(number), AllocatorId(number / 2));
            tracker.owner(&ProbeOwner { probe, allocator, known_by: OwnerEvidence::Module });
        }
        for (time_ns, (kind, process, thread, one, other, size_bytes, stack)) in (0..).zip(events) {
            let (process, thread, stack, probe) = (ProcessId(process), ThreadId(thread), StackId(stack), ProbeId(other as u32));
            let event = match kind {
                0 => Event::Allocation { process, thread, time_ns, address_avma: one, size_bytes, stack, probe, interval_bytes: 0 },
                1 => Event::Free { process, thread, time_ns, address_avma: one, probe: Some(probe), caller: FreeCaller::AllocatorModule },
                2 => Event::ReallocationBegin { process, thread, time_ns, old_address_avma: one, probe: Some(probe) },
                3 => Event::ReallocationEnd { process, thread, time_ns, old_address_avma: one, new_address_avma: other, size_bytes, stack, probe, interval_bytes: 0 },
                4 => Event::ThreadExit { process, thread, time_ns },
                _ => Event::Loss { first_lost_ns: one, time_ns, lost_count: size_bytes },
            };
            tracker.apply(&event, |_| {});
            if kind == 4 && one == 0 {
                tracker.end_process(process);
            }
        }
        let totals = tracker.totals();
        prop_assert_eq!(totals.allocations, totals.frees + totals.unseen_ends + totals.live_blocks);
        let threads = tracker.threads();
        let over_threads = |number: fn(&ThreadRecord) -> u64| threads.iter().map(number).sum::<u64>();
        prop_assert_eq!(over_threads(|thread| thread.sums.allocations), totals.allocations);
        prop_assert_eq!(over_threads(|thread| thread.sums.frees), totals.frees);
        prop_assert_eq!(over_threads(|thread| thread.sums.temporary_allocations), totals.temporary_allocations);
        prop_assert_eq!(over_threads(|thread| thread.sums.failed_allocations), totals.failed_allocations);
        prop_assert_eq!(over_threads(|thread| thread.live.blocks), totals.live_blocks);
        prop_assert_eq!(tracker.live_blocks().count() as u64, totals.live_blocks);
        let each = [ProcessId(0), ProcessId(1)].map(|process| tracker.live_of(process));
        prop_assert_eq!(each[0].blocks + each[1].blocks, totals.live_blocks);
        prop_assert_eq!(each[0].bytes.wrapping_add(each[1].bytes), totals.live_bytes);
        let mismatched: u64 = tracker.sites().iter().map(|site| site.sums.mismatched_frees).sum();
        prop_assert_eq!(mismatched, totals.mismatched_frees);
    }
}
