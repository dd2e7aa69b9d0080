//! A program that serves requests.

use std::collections::BTreeMap;

use memscope::model::{Event, FreeCaller, ProbeId, ProcessId, StackId, ThreadId};

use crate::{Expected, HEAP_START_AVMA, Random};

/// Threads that serve.
const THREADS: usize = 8;
/// Kinds of requests, each of which goes its own way through the program.
const REQUEST_KINDS: u64 = 60;
/// Call chains that a request of one kind allocates from.
const STEPS: u64 = 24;
/// What the C library's allocator puts before a block, and rounds up to.
const HEADER_BYTES: u64 = 8;
const UNIT_BYTES: u64 = 16;

/// A program that serves requests, as many do: each kind of request allocates from the same
/// call chains in the same order, and frees most of it at its end, last first. Two in three
/// call chains always ask for the same size, the others for texts of various lengths. Some
/// blocks go into a cache, and push older ones out. One request in four meets a thing that
/// the others do not. The heap gives a thread what it freed last of that size, as the C
/// library's does. Threads take turns every few events. Times are those of probes.
#[derive(Debug)]
pub struct Server {
    random: Random,
    time_ns: u64,
    threads: Vec<Serving>,
    current: usize,
    /// Blocks that stay.
    cache: Vec<(u64, u64)>,
    cache_blocks: usize,
    next_address_avma: u64,
    expected: Expected,
}

/// What a thread is doing.
#[derive(Debug, Default)]
struct Serving {
    kind: u64,
    step: u64,
    /// What the request holds.
    held: Vec<(u64, u64)>,
    /// Freed blocks by their size in the heap.
    vacant: BTreeMap<u64, Vec<u64>>,
    ending: bool,
}

impl Server {
    /// One that keeps about so many blocks.
    #[must_use]
    pub fn new(cache_blocks: usize) -> Self {
        Self {
            random: Random(0x2545_f491_4f6c_dd1d),
            time_ns: 1_000_000,
            threads: (0..THREADS).map(|_| Serving::default()).collect(),
            current: 0,
            cache: Vec::new(),
            cache_blocks,
            next_address_avma: HEAP_START_AVMA,
            expected: Expected::default(),
        }
    }

    /// What must have come out by now.
    #[must_use]
    pub fn expected(&self) -> Expected {
        self.expected
    }

    /// Goes on until there are so many events.
    pub fn fill(&mut self, events: &mut Vec<Event>, count: usize) {
        while events.len() < count {
            if self.random.below(6) == 0 {
                self.current = self.random.below(THREADS as u64) as usize;
            }
            // Two probes and what is between them; now and then more is.
            self.time_ns += 900 + self.random.below(300) + self.random.below(8).pow(3) * 20;
            let event = self.event();
            events.push(event);
        }
    }

    fn event(&mut self) -> Event {
        let (cached, limit) = (self.cache.len(), self.cache_blocks);
        let thread = &mut self.threads[self.current];
        if !thread.ending {
            return self.allocate();
        }
        match thread.held.pop() {
            // While the cache is not full, most of what ends is put there.
            Some(block) if self.random.below(if cached < limit { 2 } else { 30 }) == 0 => {
                self.cache.push(block);
                if cached < limit { self.allocate() } else { self.evict() }
            }
            Some(block) => self.free(block),
            None => {
                let kind = self.random.below(REQUEST_KINDS);
                let kind = kind * self.random.below(REQUEST_KINDS) / REQUEST_KINDS;
                let thread = &mut self.threads[self.current];
                (thread.kind, thread.step, thread.ending) = (kind, 0, false);
                self.allocate()
            }
        }
    }

    fn evict(&mut self) -> Event {
        let index = self.random.below(self.cache.len() as u64) as usize;
        let block = self.cache.swap_remove(index);
        self.free(block)
    }

    fn allocate(&mut self) -> Event {
        let detour = u64::from(self.random.below(4 * STEPS) == 0);
        let text_bytes = 1 + self.random.below(30) + self.random.below(5).pow(4);
        let thread = &mut self.threads[self.current];
        let stack = thread.kind * (STEPS + 1) + if detour == 1 { STEPS } else { thread.step };
        thread.step += 1;
        thread.ending |= thread.step >= STEPS - thread.kind % 8;
        let size_bytes = if stack.is_multiple_of(3) { text_bytes } else { 16 + stack * 37 % 400 };
        let heap_bytes = (size_bytes + HEADER_BYTES).next_multiple_of(UNIT_BYTES);
        let vacant = thread.vacant.get_mut(&heap_bytes).and_then(Vec::pop);
        let address_avma = vacant.unwrap_or_else(|| {
            self.next_address_avma += heap_bytes;
            self.next_address_avma - heap_bytes
        });
        thread.held.push((address_avma, size_bytes));
        self.expected.begin(size_bytes);
        Event::Allocation {
            process: ProcessId(1),
            thread: ThreadId(1000 + self.current as u32),
            time_ns: self.time_ns,
            address_avma,
            size_bytes,
            stack: StackId(stack as u32),
            probe: ProbeId(1),
            interval_bytes: 0,
        }
    }

    fn free(&mut self, (address_avma, size_bytes): (u64, u64)) -> Event {
        let heap_bytes = (size_bytes + HEADER_BYTES).next_multiple_of(UNIT_BYTES);
        self.threads[self.current].vacant.entry(heap_bytes).or_default().push(address_avma);
        self.expected.end(size_bytes);
        Event::Free {
            process: ProcessId(1),
            thread: ThreadId(1000 + self.current as u32),
            time_ns: self.time_ns,
            address_avma,
            probe: Some(ProbeId(2)),
            caller: FreeCaller::Program,
        }
    }
}
