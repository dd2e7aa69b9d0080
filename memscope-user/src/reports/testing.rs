//! Recordings for tests, told in a few lines of text.
//!
//! The events are those of [`crate::lifetimes::testing`]; stack `@a` has a name of
//! its own, and lines beginning with `!` say what an event cannot:
//!
//! ```text
//! !stack a depth_limit f g h      frames of @a, innermost first; `?` has no symbol
//! !process 2 worker               another process
//! !exit 2 1                       process 2 exits with 1
//! !exec 2                         process 2 replaces itself
//! !lost ring_full_free 3          three lost by that cause
//! !late                           process 1 was attached to
//! !probed-late                    process 1 may have allocated before it was probed
//! !unprobed                       no allocator was found
//! !pages 4096 0                   page faults were observed; bytes elsewhere, and gone
//! !fault a 4096 0 0 major         a page fault; bytes anonymous, of files, shared
//! !mappings                       what is mapped by system calls was observed
//! !map a anonymous program 16 4   four pages are mapped, from page 16 on; 0: the call failed
//! !unmap 18 1                     a page is unmapped
//! !owner 2 3 pool_free            function 2, of this name, is of allocator 3, as was described (of 0
//!                                 and 1 it is known by their module)
//! ```

use std::collections::BTreeMap;

use super::{Analysis, Analyzer};
use crate::{
    lifetimes::testing::{Trace, parse},
    model::{
        AllocatorId, Capture, CountedAllocations, Counters, EndReason, Ending, EndingReason, Event,
        ExactCounts, Frame, FrameId, FrameSymbols, Item, Location, LossCause, MappedBy,
        MappingKind, Module, ModuleId, OwnerEvidence, PageSums, Probe, ProbeId, ProbeOwner,
        Process, ProcessEnd, ProcessId, ResidentBytes, SizeClass, SourceFunction, Stack, StackId,
        StackMode, StackOutcome, ThreadId, ThreadName,
    },
    store::RecordingEnd,
};

/// Of two sites blocks are given to a pool.
pub(crate) const MISMATCHED: &str = "
    !owner 0 1 malloc
    !owner 2 2 pool_free
    !owner 3 2 pool_resize
    1 malloc 100 = 0x10 @keep
    1 malloc 200 = 0x20 @keep
    1 malloc 50 = 0x30 @parse
    1 malloc 60 = 0x40 @parse
    1 free.2 0x10
    1 free.2 0x20
    1 realloc.3 0x30 70 = 0x50 @parse
    1 free 0x40";

/// `fill` and `read` are told apart; two places in one line of `fill` are not.
pub(crate) const FAULTS: &str = "
    !unprobed
    !pages 8192 4096
    !stack one complete fill main
    !stack two complete read main
    !fault one 4096 0 0
    !fault two 0 65536 0 major
    !fault one 2097152 0 0
    !fault two 0 0 0
    !fault two 0 0 4096
    !exit 1 0";

/// A heap, files, and memory of which a part was given back.
pub(crate) const MAPPED: &str = "
    !mappings
    !stack one complete mmap arena main
    !stack two complete mmap load main
    !map one anonymous program 16 100
    !map one anonymous program 200 100
    !unmap 220 50
    !unmap 400 2
    !map two file program 500 8
    !map one anonymous allocator 600 25
    !map two file program 0 8
    1 malloc 100 = 0x10 @a";

const PAGE_BYTES: u64 = 4096;

/// When all test recordings begin, `CLOCK_MONOTONIC`.
pub(crate) const STARTED_AT_NS: u64 = 1_000;
/// When all test recordings end, `CLOCK_MONOTONIC`.
pub(crate) const ENDED_AT_NS: u64 = 1_001_000;

pub(crate) fn capture() -> Capture {
    Capture {
        memscope_version: "0.0.0".to_owned(),
        started_at_unix_seconds: 1_700_000_000,
        started_at_unix_nanoseconds: 0,
        started_at_ns: STARTED_AT_NS,
        kernel: "6.12.0".to_owned(),
        arch: "x86_64".to_owned(),
        command: Some(vec!["server".to_owned(), "--fast".to_owned()]),
        ring_bytes: 1 << 20,
        sampling_interval_bytes: None,
        stacks: StackMode::Full,
    }
}

pub(crate) fn regular_end() -> RecordingEnd {
    RecordingEnd::Complete(Ending { ended_at_ns: ENDED_AT_NS, reason: EndingReason::TargetsEnded })
}

fn process(id: u32, comm: &str) -> Process {
    Process {
        id: ProcessId(id),
        pid: 1000 + id,
        start_ticks: 7,
        image: 0,
        observed_from_ns: STARTED_AT_NS,
        comm: comm.to_owned(),
        exe: format!("/usr/bin/{comm}"),
        allocators: vec!["libc.so.6".to_owned()],
        from_start: true,
        probed_late: false,
    }
}

/// Defines what the events refer to and was not defined by hand.
struct Definer {
    items: Vec<Item>,
    frames: BTreeMap<(u32, String), FrameId>,
    lost: Vec<(LossCause, u64)>,
}

impl Definer {
    /// Frame `f` is in module 1 at 0x100 × its number, at `f.c`, line its number;
    /// `f(i)` is inlined into the next; `?` has no symbol and `??` no module.
    fn frame(&mut self, process: u32, name: &str) -> FrameId {
        let number = self.frames.len() as u32 + 1;
        if let Some(known) = self.frames.get(&(process, name.to_owned())) {
            return *known;
        }
        let id = FrameId(number);
        self.frames.insert((process, name.to_owned()), id);
        let location = if name == "??" {
            Location::Unmapped { process: ProcessId(process), address_avma: 0x7fff_0000 }
        } else {
            Location::Module { module: ModuleId(1), file_offset: u64::from(number) * 0x100 }
        };
        self.items.push(Item::Frame(Frame { id, location }));
        if !name.starts_with('?') {
            let function = |name: &str, inlined| SourceFunction {
                name: name.replace('_', " "),
                file: Some(format!("/src/{name}.c")),
                line: Some(number),
                inlined,
            };
            let mut functions: Vec<_> = name.split('<').map(|name| function(name, true)).collect();
            functions.last_mut().unwrap().inlined = false;
            self.items.push(Item::Symbols(FrameSymbols { frame: id, functions }));
        }
        id
    }

    fn stack(&mut self, id: StackId, process: u32, outcome: StackOutcome, frames: &[&str]) {
        let frames = frames.iter().map(|name| self.frame(process, name)).collect();
        self.items.push(Item::Stack(Stack { id, process: ProcessId(process), outcome, frames }));
    }

    fn owner(&mut self, probe: &str, allocator: &str, function: &str) {
        let (id, module) = (ProbeId(probe.parse().unwrap()), ModuleId(1));
        let function = function.to_owned();
        let (file_offset, emulated) = (0x20, true);
        self.items.push(Item::Probe(Probe { id, function, module, file_offset, emulated }));
        let allocator = AllocatorId(allocator.parse().unwrap());
        let known_by = match id {
            ProbeId(0 | 1) => OwnerEvidence::Module,
            _ => OwnerEvidence::Description,
        };
        self.items.push(Item::Owner(ProbeOwner { probe: id, allocator, known_by }));
    }

    /// The first process is otherwise than it was said to be.
    fn redefine(&mut self, change: impl FnOnce(&mut Process)) {
        let mut process = process(1, "server");
        change(&mut process);
        self.items.push(Item::Process(process));
    }

    fn thread_name(&mut self, process: &str, thread: &str, name: &str) {
        self.items.push(Item::ThreadName(ThreadName {
            process: ProcessId(process.parse().unwrap()),
            thread: ThreadId(thread.parse().unwrap()),
            name: name.to_owned(),
        }));
    }

    fn directive(&mut self, words: &[&str], trace: &mut Trace) {
        match words {
            ["stack", stack, outcome, frames @ ..] => {
                let outcome = StackOutcome::ALL.into_iter().find(|known| known.name() == *outcome);
                let id = trace.stack(stack);
                self.stack(id, 1, outcome.unwrap(), frames);
            }
            ["process", id, comm] => {
                self.items.push(Item::Process(process(id.parse().unwrap(), comm)))
            }
            ["exit", id, status] => {
                self.items.push(end(id, EndReason::Exit(Some(status.parse().unwrap()))))
            }
            ["exec", id] => self.items.push(end(id, EndReason::Exec)),
            ["lost", cause, count] => {
                let cause = LossCause::ALL.into_iter().find(|known| known.name() == *cause);
                self.lost.push((cause.unwrap(), count.parse().unwrap()));
            }
            ["exact", bits, calls, bytes] => self.items.push(Item::ExactCounts(ExactCounts {
                classes: vec![SizeClass {
                    bits: bits.parse().unwrap(),
                    calls: calls.parse().unwrap(),
                    bytes: bytes.parse().unwrap(),
                }],
                frees_dropped: 7,
            })),
            ["counted", stack, allocations, bytes] => {
                let counted = CountedAllocations {
                    process: ProcessId(1),
                    stack: trace.stack(stack),
                    time_ns: STARTED_AT_NS + 1,
                    allocations: allocations.parse().unwrap(),
                    bytes: bytes.parse().unwrap(),
                };
                self.items.push(Item::Counted(counted));
            }
            ["fault", stack, anonymous, file, shared, rest @ ..] => {
                let resident = resident(anonymous, file, shared);
                self.items.push(Item::Event(Event::PageFault {
                    process: ProcessId(1),
                    thread: ThreadId(1),
                    time_ns: STARTED_AT_NS + 1,
                    address_avma: 0x1000,
                    stack: trace.stack(stack),
                    resident,
                    is_major: *rest == ["major"],
                }));
            }
            ["pages", elsewhere, gone] => self.items.push(Item::PageSums(PageSums {
                elsewhere: resident(elsewhere, "0", "0"),
                gone: resident(gone, "0", "0"),
            })),
            ["mappings" | "map" | "unmap", ..] => {
                let item = mapping_item(words, trace);
                self.items.push(item);
            }
            ["owner", probe, allocator, function] => self.owner(probe, allocator, function),
            ["thread-name", process, thread, name] => self.thread_name(process, thread, name),
            ["late"] => self.redefine(|process| process.from_start = false),
            ["probed-late"] => self.redefine(|process| process.probed_late = true),
            ["unprobed"] => self.items.retain(|item| !matches!(item, Item::Probe(_))),
            other => panic!("no such directive: {other:?}"),
        }
    }
}

fn mapping_item(words: &[&str], trace: &mut Trace) -> Item {
    match words {
        ["mappings"] => Item::MappingsObserved,
        ["map", stack, kind, by, page, pages] => {
            let kind = MappingKind::ALL.into_iter().find(|known| known.name() == *kind);
            Item::Event(Event::Mapping {
                process: ProcessId(1),
                thread: ThreadId(1),
                time_ns: STARTED_AT_NS + 2_000_000,
                address_avma: page.parse::<u64>().unwrap() * PAGE_BYTES,
                size_bytes: pages.parse::<u64>().unwrap() * PAGE_BYTES,
                stack: trace.stack(stack),
                kind: kind.unwrap(),
                by: match *by {
                    "program" => MappedBy::Program,
                    "allocator" => MappedBy::Allocator(ProbeId(1)),
                    _ => MappedBy::Unknown,
                },
            })
        }
        ["unmap", page, pages] => Item::Event(Event::Unmapping {
            process: ProcessId(1),
            thread: ThreadId(1),
            time_ns: STARTED_AT_NS + 3_000_000,
            address_avma: page.parse::<u64>().unwrap() * PAGE_BYTES,
            size_bytes: pages.parse::<u64>().unwrap() * PAGE_BYTES,
        }),
        other => panic!("no such directive: {other:?}"),
    }
}

fn end(id: &str, reason: EndReason) -> Item {
    let process = ProcessId(id.parse().unwrap());
    Item::ProcessEnd(ProcessEnd { process, time_ns: ENDED_AT_NS, reason })
}

fn resident(anonymous: &str, file: &str, shared: &str) -> ResidentBytes {
    let [anonymous, file, shared] = [anonymous, file, shared].map(|bytes| bytes.parse().unwrap());
    ResidentBytes { anonymous, file, shared }
}

/// The items of a recording, the counters last.
pub(crate) fn items(text: &str) -> Vec<Item> {
    let (directives, events): (Vec<&str>, Vec<&str>) =
        text.lines().map(str::trim).partition(|line| line.starts_with('!'));
    let mut trace = parse(&events.join("\n"));
    let module =
        Module { id: ModuleId(1), path: "/usr/bin/server".to_owned(), build_id: vec![0xab, 0xcd] };
    let probe = Probe {
        id: ProbeId(1),
        function: "malloc".to_owned(),
        module: ModuleId(1),
        file_offset: 0x10,
        emulated: true,
    };
    let mut definer = Definer {
        items: vec![Item::Process(process(1, "server")), Item::Module(module), Item::Probe(probe)],
        frames: BTreeMap::new(),
        lost: Vec::new(),
    };
    for directive in directives {
        let words: Vec<_> = directive[1..].split_whitespace().collect();
        definer.directive(&words, &mut trace);
    }
    for (name, id, process) in trace.stacks() {
        let defined = |item: &Item| matches!(item, Item::Stack(stack) if stack.id == id);
        if !definer.items.iter().any(defined) {
            definer.stack(id, process, StackOutcome::Complete, &[&name, "main"]);
        }
    }
    let ends = |item: &Item| matches!(item, Item::ProcessEnd(_));
    let (ends, mut items): (Vec<_>, Vec<_>) = definer.items.into_iter().partition(ends);
    let recorded = trace.events.iter().filter(|event| !matches!(event, Event::Loss { .. })).count();
    let mut forks = trace.forks.into_iter().peekable();
    let mut windows = trace.windows.into_iter().peekable();
    let mut readings = trace.readings.into_iter().peekable();
    for (position, event) in trace.events.into_iter().enumerate() {
        while let Some((_, fork)) = forks.next_if(|(after, _)| *after == position) {
            items.push(Item::Fork(fork));
        }
        while let Some((_, window)) = windows.next_if(|(after, _)| *after == position) {
            items.push(Item::Window(window));
        }
        while let Some((_, reading)) = readings.next_if(|(after, _)| *after == position) {
            items.push(Item::Memory(reading));
        }
        items.push(Item::Event(event));
    }
    items.extend(forks.map(|(_, fork)| Item::Fork(fork)));
    items.extend(windows.map(|(_, window)| Item::Window(window)));
    items.extend(readings.map(|(_, reading)| Item::Memory(reading)));
    items.extend(ends);
    let is_told_so = |item: &&Item| {
        matches!(
            item,
            Item::Event(Event::PageFault { .. } | Event::Mapping { .. } | Event::Unmapping { .. })
        )
    };
    let recorded = (recorded + items.iter().filter(is_told_so).count()) as u64;
    let lost: u64 = definer.lost.iter().map(|(_, count)| count).sum();
    items.push(Item::Counters(Counters {
        attempted: recorded + lost,
        recorded,
        nested: 0,
        hits: 2 * recorded,
        malformed: 0,
        in_flight: 0,
        lost: definer.lost,
    }));
    items
}

/// Analyses a recording told in text, which ends regularly.
pub(crate) fn analysis(text: &str) -> Analysis {
    analysis_of(&items(text), regular_end())
}

pub(crate) fn analysis_of(items: &[Item], end: RecordingEnd) -> Analysis {
    let mut analyzer = Analyzer::default();
    items.iter().for_each(|item| analyzer.apply(item, |_| {}));
    analyzer.finish(capture(), end)
}
