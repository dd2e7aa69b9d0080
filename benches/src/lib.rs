//! Benchmarks of memscope, and the recordings that they work on.

mod server;

pub use server::Server;

use memscope::model::{
    Capture, Counters, Ending, EndingReason, Event, Frame, FrameId, FreeCaller, Item, Location,
    Module, ModuleId, Probe, ProbeId, Process, ProcessId, Stack, StackId, StackMode, StackOutcome,
    ThreadId,
};

/// Distinct call chains of the recording.
const STACKS: u32 = 2_000;
/// Threads of the recording.
const THREADS: u32 = 8;
/// Address of the first block.
const HEAP_START_AVMA: u64 = 0x5555_0000_0000;

/// What the recording holds, counted while it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Blocks that begin.
    pub allocations: u64,
    /// Sum of their sizes.
    pub allocated_bytes: u64,
    /// Blocks that end.
    pub frees: u64,
    /// Blocks that do not.
    pub live_blocks: u64,
    /// Sum of their sizes.
    pub live_bytes: u64,
    /// Of all live blocks, the greatest sum of sizes at any time.
    pub peak_live_bytes: u64,
}

impl Expected {
    fn begin(&mut self, size_bytes: u64) {
        self.allocations += 1;
        self.allocated_bytes += size_bytes;
        self.live_blocks += 1;
        self.live_bytes += size_bytes;
        self.peak_live_bytes = self.peak_live_bytes.max(self.live_bytes);
    }

    fn end(&mut self, size_bytes: u64) {
        self.frees += 1;
        self.live_blocks -= 1;
        self.live_bytes -= size_bytes;
    }
}

/// Events and what must come out of them.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What is defined.
    pub definitions: Vec<Item>,
    /// What happens.
    pub events: Vec<Event>,
    /// What must come out.
    pub expected: Expected,
}

/// Marsaglia's xorshift64: the same numbers in every run.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Events without any habit: thread, call chain and size of each are drawn anew. Most
/// blocks are small and die young, some are moved, some stay; addresses are used again.
/// No program is so hard to write down.
struct Maker {
    random: Random,
    time_ns: u64,
    /// Address and size of each live block.
    live: Vec<(u64, u64)>,
    vacant: Vec<u64>,
    next_address_avma: u64,
    events: Vec<Event>,
    expected: Expected,
}

impl Maker {
    fn thread(&mut self) -> ThreadId {
        ThreadId(1000 + self.random.below(THREADS.into()) as u32)
    }

    fn address(&mut self) -> u64 {
        self.vacant.pop().unwrap_or_else(|| {
            self.next_address_avma += 0x40;
            self.next_address_avma
        })
    }

    fn size(&mut self) -> u64 {
        if self.random.below(50) == 0 {
            self.random.below(1 << 20)
        } else {
            16 + self.random.below(240)
        }
    }

    /// Few call chains allocate most.
    fn stack(&mut self) -> StackId {
        let (one, other) = (self.random.below(STACKS.into()), self.random.below(STACKS.into()));
        StackId((one * other / u64::from(STACKS)) as u32)
    }

    fn begin(&mut self, address_avma: u64, size_bytes: u64) {
        self.live.push((address_avma, size_bytes));
        self.expected.begin(size_bytes);
    }

    /// Takes a live block out, mostly a young one.
    fn end(&mut self) -> Option<(u64, u64)> {
        let youth = (self.live.len() as u64).clamp(1, 64);
        let from_end = if self.random.below(8) == 0 {
            self.random.below(self.live.len().max(1) as u64)
        } else {
            self.random.below(youth)
        };
        let index = self.live.len().checked_sub(1 + from_end as usize)?;
        let (address_avma, size_bytes) = self.live.swap_remove(index);
        self.expected.end(size_bytes);
        Some((address_avma, size_bytes))
    }

    fn allocate(&mut self) {
        let (thread, stack) = (self.thread(), self.stack());
        let (address_avma, size_bytes) = (self.address(), self.size());
        self.begin(address_avma, size_bytes);
        self.events.push(Event::Allocation {
            process: ProcessId(1),
            thread,
            time_ns: self.time_ns,
            address_avma,
            size_bytes,
            stack,
            probe: ProbeId(1),
            interval_bytes: 0,
        });
    }

    fn free(&mut self) {
        let thread = self.thread();
        let Some((address_avma, _)) = self.end() else {
            return;
        };
        self.vacant.push(address_avma);
        self.events.push(Event::Free {
            process: ProcessId(1),
            thread,
            time_ns: self.time_ns,
            address_avma,
            probe: Some(ProbeId(2)),
            caller: FreeCaller::Program,
        });
    }

    fn reallocate(&mut self) {
        let (process, thread, stack) = (ProcessId(1), self.thread(), self.stack());
        let Some((old_address_avma, size_bytes)) = self.end() else {
            return;
        };
        let new_address_avma = self.address();
        self.vacant.push(old_address_avma);
        self.begin(new_address_avma, 2 * size_bytes);
        let time_ns = self.time_ns;
        let probe = Some(ProbeId(1));
        self.events.push(Event::ReallocationBegin {
            process,
            thread,
            time_ns,
            old_address_avma,
            probe,
        });
        self.events.push(Event::ReallocationEnd {
            process,
            thread,
            time_ns: time_ns + 100,
            old_address_avma,
            new_address_avma,
            size_bytes: 2 * size_bytes,
            stack,
            probe: ProbeId(1),
            interval_bytes: 0,
        });
    }
}

impl Workload {
    /// At least so many events of a [`Server`] with about so many live blocks.
    #[must_use]
    pub fn server(events: usize, live: usize) -> Self {
        let (mut server, mut made) = (Server::new(live), Vec::with_capacity(events + 1));
        server.fill(&mut made, events);
        Self { definitions: definitions(), events: made, expected: server.expected() }
    }

    /// At least so many events without any habit, in which about `live` blocks stay live.
    #[must_use]
    pub fn random(events: usize, live: usize) -> Self {
        let mut maker = Maker {
            random: Random(0x9e37_79b9_7f4a_7c15),
            time_ns: 1_000_000,
            live: Vec::new(),
            vacant: Vec::new(),
            next_address_avma: HEAP_START_AVMA,
            events: Vec::with_capacity(events + 1),
            expected: Expected::default(),
        };
        while maker.events.len() < events {
            maker.time_ns += 200 + maker.random.below(2_000);
            // Grows to its size and then stays there.
            let grows = if maker.live.len() < live { 70 } else { 45 };
            match maker.random.below(100) {
                0..5 => maker.reallocate(),
                choice if choice < grows => maker.allocate(),
                _ => maker.free(),
            }
        }
        Self { definitions: definitions(), events: maker.events, expected: maker.expected }
    }

    /// All of it as a recording has it, counters last.
    #[must_use]
    pub fn items(&self) -> Vec<Item> {
        let recorded = self.events.len() as u64;
        let counters =
            Counters { attempted: recorded, recorded, hits: recorded, ..Counters::default() };
        let mut items = self.definitions.clone();
        items.extend(self.events.iter().map(|event| Item::Event(*event)));
        items.push(Item::Counters(counters));
        items
    }

    /// How it begins.
    #[must_use]
    pub fn capture(&self) -> Capture {
        Capture {
            memscope_version: "bench".to_owned(),
            started_at_unix_seconds: 1_700_000_000,
            started_at_unix_nanoseconds: 0,
            started_at_ns: 1_000_000,
            kernel: "6.12.0".to_owned(),
            arch: "x86_64".to_owned(),
            command: None,
            ring_bytes: 1 << 26,
            sampling_interval_bytes: None,
            stacks: StackMode::Full,
        }
    }

    /// How it ends.
    #[must_use]
    pub fn ending(&self) -> Ending {
        let ended_at_ns = self.events.last().map_or(0, Event::time_ns);
        Ending { ended_at_ns, reason: EndingReason::TargetsEnded }
    }
}

/// A process, a module, and call chains of 12 frames that share their outer ones.
fn definitions() -> Vec<Item> {
    let mut items = vec![
        Item::Process(Process {
            id: ProcessId(1),
            pid: 1000,
            start_ticks: 1,
            image: 0,
            observed_from_ns: 1_000_000,
            comm: "server".to_owned(),
            exe: "/usr/bin/server".to_owned(),
            allocators: vec!["libc.so.6".to_owned()],
            from_start: true,
            probed_late: false,
        }),
        Item::Module(Module {
            id: ModuleId(1),
            path: "/usr/bin/server".to_owned(),
            build_id: vec![7; 20],
        }),
        Item::Probe(Probe {
            id: ProbeId(1),
            function: "malloc".to_owned(),
            module: ModuleId(1),
            file_offset: 0x40,
            emulated: true,
        }),
    ];
    items.extend((0..STACKS + 12).map(|number| {
        let location = Location::Module {
            module: ModuleId(1),
            file_offset: 0x1000 + 0x35 * u64::from(number),
        };
        Item::Frame(Frame { id: FrameId(number), location })
    }));
    items.extend((0..STACKS).map(|number| {
        Item::Stack(Stack {
            id: StackId(number),
            process: ProcessId(1),
            outcome: StackOutcome::Complete,
            frames: (number..number + 12).map(FrameId).collect(),
        })
    }));
    items
}
