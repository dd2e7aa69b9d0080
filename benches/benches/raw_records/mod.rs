//! A workload as the kernel side writes it.

use std::collections::BTreeMap;

use memscope::{
    collect::{
        CodeRange, Collector, CopiedStack, Decoder, Observation, ProcessView, Record, TargetStart,
        WalkedCopy,
    },
    model::{Event, FreeCaller, Item, ThreadId},
};
use memscope_benches::Workload;
use memscope_common::record::{
    self, Header, KIND_REALLOCATION_BEGIN, KIND_REALLOCATION_END, KIND_SMALL_ALLOCATION,
    KIND_SMALL_FREE, KIND_STACK, KIND_THREAD_NUMBER, OUTCOME_COMPLETE, SmallAllocation,
    StackHeader, ThreadNumber, address_and_thread, kind_and_time,
};
use zerocopy::IntoBytes as _;

const PROBE: u16 = 1;

/// A target of which nothing can be seen; its frames are addresses.
#[derive(Debug)]
pub(crate) struct NothingToSee;

impl ProcessView for NothingToSee {
    fn observe(&mut self, _target: u16) -> Option<Observation> {
        None
    }
    fn start_ticks(&self, _target: u16) -> Option<u64> {
        None
    }
    fn probes_gone(&mut self, _target: u16) {}
    fn walk_copy<'code>(
        &mut self,
        _target: u16,
        _stack: &CopiedStack,
        _range_at: &dyn Fn(u64) -> Option<&'code CodeRange>,
    ) -> Option<WalkedCopy> {
        None
    }
}

enum Raw {
    Small([u64; 3]),
    Large(Vec<u8>),
}

/// In the order in which they are read.
pub(crate) struct RawRecords {
    records: Vec<Raw>,
    probe: memscope::model::Probe,
}

fn header(kind: u8, time_ns: u64) -> Header {
    Header { kind, padding: 0, probe: PROBE, image: 0, target: 0, time_ns }
}

impl RawRecords {
    pub(crate) fn of(workload: &Workload) -> Self {
        let mut raw = Self { records: Vec::new(), probe: probe_of(workload) };
        let mut numbers = BTreeMap::new();
        for item in &workload.definitions {
            if let Item::Stack(stack) = item {
                raw.stack(
                    stack.id.0 + 1,
                    stack.frames.iter().map(|frame| 0x40_0000 + 16 * u64::from(frame.0)),
                );
            }
        }
        for event in &workload.events {
            raw.event(event, &mut numbers);
        }
        raw
    }

    fn stack(&mut self, number: u32, frames_avma: impl ExactSizeIterator<Item = u64>) {
        let stack = StackHeader {
            header: header(KIND_STACK, 1),
            stack: number.into(),
            tables_read_ns: 1,
            outcome: OUTCOME_COMPLETE,
            flags: 0,
            frame_count: frames_avma.len() as u32,
        };
        let mut bytes = stack.as_bytes().to_vec();
        frames_avma.for_each(|avma| bytes.extend(avma.to_ne_bytes()));
        self.records.push(Raw::Large(bytes));
    }

    /// The number of a thread, told before its first use.
    fn number(&mut self, thread: ThreadId, numbers: &mut BTreeMap<ThreadId, u64>) -> u64 {
        let next = numbers.len() as u64 + 1;
        *numbers.entry(thread).or_insert_with(|| {
            let told = ThreadNumber {
                header: header(KIND_THREAD_NUMBER, 1),
                number: next as u32,
                thread: thread.0,
            };
            self.records.push(Raw::Large(told.as_bytes().to_vec()));
            next
        })
    }

    fn event(&mut self, event: &Event, numbers: &mut BTreeMap<ThreadId, u64>) {
        let raw = match *event {
            Event::Allocation { thread, time_ns, address_avma, size_bytes, stack, .. } => {
                let number = self.number(thread, numbers);
                Raw::Small([
                    kind_and_time(KIND_SMALL_ALLOCATION, time_ns),
                    address_and_thread(address_avma, number),
                    SmallAllocation::pack(stack.0 + 1, size_bytes, PROBE),
                ])
            }
            Event::Free { thread, time_ns, address_avma, caller, .. } => {
                assert_eq!(caller, FreeCaller::Program);
                let number = self.number(thread, numbers);
                Raw::Small([
                    kind_and_time(KIND_SMALL_FREE, time_ns),
                    address_and_thread(address_avma, number),
                    PROBE.into(),
                ])
            }
            Event::ReallocationBegin { thread, time_ns, old_address_avma, .. } => {
                let record = record::ReallocationBegin {
                    header: header(KIND_REALLOCATION_BEGIN, time_ns),
                    old_address_avma,
                    thread: thread.0,
                    allocated_since: 0,
                };
                Raw::Large(record.as_bytes().to_vec())
            }
            Event::ReallocationEnd {
                thread,
                time_ns,
                old_address_avma,
                new_address_avma,
                size_bytes,
                stack,
                ..
            } => {
                let record = record::ReallocationEnd {
                    header: header(KIND_REALLOCATION_END, time_ns),
                    old_address_avma,
                    new_address_avma,
                    size_bytes,
                    interval_bytes: 0,
                    stack: stack.0 + 1,
                    thread: thread.0,
                };
                Raw::Large(record.as_bytes().to_vec())
            }
            // The workload has none of these; one would be missed in its result.
            Event::ThreadExit { .. }
            | Event::Loss { .. }
            | Event::PageFault { .. }
            | Event::Mapping { .. }
            | Event::Unmapping { .. }
            | Event::Remapping { .. } => return,
        };
        self.records.push(raw);
    }

    /// Tells the collector what it is to know before the first record.
    pub(crate) fn begin(
        &self,
        collector: &mut Collector<NothingToSee>,
        mut give: impl FnMut(Item),
    ) {
        collector.define_probe(self.probe.clone(), None, &mut give);
        let start = TargetStart {
            target: 0,
            pid: 1,
            start_ticks: 1,
            time_ns: 0,
            from_start: true,
            heap_end_avma: None,
        };
        collector.start_target(&start, &mut give);
    }

    /// Gives each record as the draining thread makes it.
    pub(crate) fn each(&self, decoder: &mut Decoder, mut take: impl FnMut(&Record)) {
        for raw in &self.records {
            let record = match raw {
                Raw::Small(words) => decoder.decode_small(*words).map(Some),
                Raw::Large(bytes) => decoder.decode(bytes),
            };
            if let Some(record) = record.unwrap() {
                take(&record);
            }
        }
    }
}

fn probe_of(workload: &Workload) -> memscope::model::Probe {
    memscope::model::Probe {
        id: memscope::model::ProbeId(PROBE.into()),
        function: "malloc".to_owned(),
        module: workload
            .definitions
            .iter()
            .find_map(|item| match item {
                Item::Module(module) => Some(module.id),
                _ => None,
            })
            .unwrap(),
        file_offset: 0,
        emulated: true,
    }
}
