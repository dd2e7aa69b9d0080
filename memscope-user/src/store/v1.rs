//! What recordings of format 1 hold, where it differs from now. Nothing here changes any
//! more: such files are read for ever.

use serde::Deserialize;

use super::varint::unzigzag;
use crate::model::{
    self, Counters, Frame, FrameSymbols, FreeCaller, Module, Probe, ProbeId, Process, ProcessEnd,
    ProcessId, Stack, StackId, StackMode, ThreadId,
};

/// What a recording said of itself at its beginning.
#[derive(Deserialize)]
pub(super) struct Capture {
    memscope_version: String,
    started_at_unix_seconds: u64,
    started_at_unix_nanoseconds: u32,
    started_at_ns: u64,
    kernel: String,
    arch: String,
    command: Option<Vec<String>>,
    ring_bytes: u64,
}

impl From<Capture> for model::Capture {
    fn from(capture: Capture) -> Self {
        Self {
            memscope_version: capture.memscope_version,
            started_at_unix_seconds: capture.started_at_unix_seconds,
            started_at_unix_nanoseconds: capture.started_at_unix_nanoseconds,
            started_at_ns: capture.started_at_ns,
            kernel: capture.kernel,
            arch: capture.arch,
            command: capture.command,
            ring_bytes: capture.ring_bytes,
            sampling_interval_bytes: None,
            stacks: StackMode::Full,
        }
    }
}

#[derive(Deserialize)]
enum Item {
    Process(Process),
    ProcessEnd(ProcessEnd),
    Module(Module),
    Probe(Probe),
    Frame(Frame),
    Stack(Stack),
    Symbols(FrameSymbols),
    Event(Event),
    Counters(Counters),
}

/// Times and addresses are differences to those before, in the same chunk.
#[derive(Deserialize)]
enum Event {
    Allocation {
        process: ProcessId,
        thread: ThreadId,
        time: u64,
        address: u64,
        size_bytes: u64,
        stack: StackId,
        probe: ProbeId,
    },
    Free {
        process: ProcessId,
        thread: ThreadId,
        time: u64,
        address: u64,
        caller: FreeCaller,
    },
    ReallocationBegin {
        process: ProcessId,
        thread: ThreadId,
        time: u64,
        old_address: u64,
    },
    ReallocationEnd {
        process: ProcessId,
        thread: ThreadId,
        time: u64,
        old_address: u64,
        new_address: u64,
        size_bytes: u64,
        stack: StackId,
        probe: ProbeId,
    },
    ThreadExit {
        process: ProcessId,
        thread: ThreadId,
        time: u64,
    },
    Loss {
        first_lost: u64,
        time: u64,
        lost_count: u64,
    },
}

/// The items of a payload, up to the first that cannot be decoded; whether all could.
pub(super) fn decode_items(mut payload: &[u8]) -> (Vec<model::Item>, bool) {
    let mut items = Vec::new();
    let mut previous = Previous::default();
    while !payload.is_empty() {
        let Ok((item, rest)) = postcard::take_from_bytes::<Item>(payload) else {
            return (items, false);
        };
        payload = rest;
        items.push(match item {
            Item::Process(process) => model::Item::Process(process),
            Item::ProcessEnd(end) => model::Item::ProcessEnd(end),
            Item::Module(module) => model::Item::Module(module),
            Item::Probe(probe) => model::Item::Probe(probe),
            Item::Frame(frame) => model::Item::Frame(frame),
            Item::Stack(stack) => model::Item::Stack(stack),
            Item::Symbols(symbols) => model::Item::Symbols(symbols),
            Item::Event(event) => model::Item::Event(previous.decode(event)),
            Item::Counters(counters) => model::Item::Counters(counters),
        });
    }
    (items, true)
}

/// Time and address of the previous event of the same chunk; zero at its beginning.
#[derive(Default)]
struct Previous {
    time_ns: u64,
    address_avma: u64,
}

impl Previous {
    fn time_ns(&mut self, difference: u64) -> u64 {
        self.time_ns = self.time_ns.wrapping_add_signed(unzigzag(difference));
        self.time_ns
    }

    fn address_avma(&mut self, difference: u64) -> u64 {
        self.address_avma = self.address_avma.wrapping_add_signed(unzigzag(difference));
        self.address_avma
    }

    /// Differences are taken in the order in which the fields stand.
    fn decode(&mut self, event: Event) -> model::Event {
        match event {
            Event::Allocation { process, thread, time, address, size_bytes, stack, probe } => {
                model::Event::Allocation {
                    process,
                    thread,
                    time_ns: self.time_ns(time),
                    address_avma: self.address_avma(address),
                    size_bytes,
                    stack,
                    probe,
                    interval_bytes: 0,
                }
            }
            Event::Free { process, thread, time, address, caller } => model::Event::Free {
                process,
                thread,
                time_ns: self.time_ns(time),
                address_avma: self.address_avma(address),
                probe: None,
                caller,
            },
            Event::ReallocationBegin { process, thread, time, old_address } => {
                model::Event::ReallocationBegin {
                    process,
                    thread,
                    time_ns: self.time_ns(time),
                    old_address_avma: self.address_avma(old_address),
                    probe: None,
                }
            }
            Event::ReallocationEnd {
                process,
                thread,
                time,
                old_address,
                new_address,
                size_bytes,
                stack,
                probe,
            } => model::Event::ReallocationEnd {
                process,
                thread,
                time_ns: self.time_ns(time),
                old_address_avma: self.address_avma(old_address),
                new_address_avma: self.address_avma(new_address),
                size_bytes,
                stack,
                probe,
                interval_bytes: 0,
            },
            Event::ThreadExit { process, thread, time } => {
                model::Event::ThreadExit { process, thread, time_ns: self.time_ns(time) }
            }
            Event::Loss { first_lost, time, lost_count } => model::Event::Loss {
                first_lost_ns: self.time_ns(first_lost),
                time_ns: self.time_ns(time),
                lost_count,
            },
        }
    }
}
