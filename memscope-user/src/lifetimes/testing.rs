//! Event lists for tests, told in text: one event a line, 10 ns apart.
//!
//! ```text
//! 1 malloc 100 = 0x10 @a      thread 1 allocates 100 bytes at 0x10 from stack a
//! 1 malloc 100 = null @a      … and gets none
//! 1 free 0x10                 the program frees
//! 1 free! 0x10                the allocator's own module frees
//! 1 realloc 0x10 200 = 0x20 @a    entered and returned at once
//! 1 realloc> 0x10             entered
//! 1 realloc< 0x10 200 = 0x20 @a   returned
//! 1 exit                      thread 1 ends
//! 1 free.2 0x10               by the function with probe 2; so may all others, which else have 0
//! lost 5                      five records are missing
//! +1000                       that much later
//! every 4096                  sampled from now on, on average every 4096 bytes
//! end 2                       process 2 ends (see [`Trace::process_ends`])
//! fork 1 2                    process 2 begins as a copy of process 1
//! window 5 3 1                a window ends (see [`Trace::windows`]): ms that targets used in
//!                             it, ms before it, ms that probes cost
//! window 5 3 1 last           the same, and the recording ends with it
//! memory 1 anon 900 file 90     the memory of process 1 is read (see [`Trace::readings`]): what, and
//!                             how many bytes; shmem, pss, swap, peak, group, brk and mapped are the others
//! ```
//!
//! `2:1 malloc …` is thread 1 of process 2; else it is process 1.

use std::collections::BTreeMap;

use crate::model::{
    ControlGroupMemory, Event, Fork, FreeCaller, MappedMemory, MemoryReading, ProbeId, ProcessId,
    ProcessMemory, StackId, ThreadId, Window,
};

/// Nanoseconds from one line to the next.
pub(crate) const STEP_NS: u64 = 10;

#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) events: Vec<Event>,
    /// After how many events a process ends, which one, and when.
    pub(crate) process_ends: Vec<(usize, ProcessId, u64)>,
    /// After how many events a process is forked.
    pub(crate) forks: Vec<(usize, Fork)>,
    /// After how many events a window ends.
    pub(crate) windows: Vec<(usize, Window)>,
    /// After how many events memory is read.
    pub(crate) readings: Vec<(usize, MemoryReading)>,
    stacks: BTreeMap<String, (StackId, u32)>,
    now_ns: u64,
    interval_bytes: u64,
}

impl Trace {
    /// Id of the stack of that name; made if there is none.
    pub(crate) fn stack(&mut self, name: &str) -> StackId {
        self.stack_of(name, 1)
    }

    fn stack_of(&mut self, name: &str, process: u32) -> StackId {
        let next = StackId(self.stacks.len() as u32);
        self.stacks.entry(name.to_owned()).or_insert((next, process)).0
    }

    /// Name, id and process of every stack.
    pub(crate) fn stacks(&self) -> Vec<(String, StackId, u32)> {
        self.stacks.iter().map(|(name, (id, process))| (name.clone(), *id, *process)).collect()
    }

    fn line(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        match &*words {
            [] => return,
            [later] if later.starts_with('+') => {
                self.now_ns += later[1..].parse::<u64>().unwrap();
                return;
            }
            ["every", interval] => {
                self.interval_bytes = interval.parse().unwrap();
                return;
            }
            ["end", process] => {
                self.now_ns += STEP_NS;
                let process = ProcessId(process.parse().unwrap());
                self.process_ends.push((self.events.len(), process, self.now_ns));
                return;
            }
            ["fork", parent, child] => {
                self.now_ns += STEP_NS;
                let id = |number: &str| ProcessId(number.parse().unwrap());
                let (process, parent, time_ns) = (id(child), id(parent), self.now_ns);
                self.forks.push((self.events.len(), Fork { process, parent, time_ns }));
                return;
            }
            ["window", observed, missed, cost, rest @ ..] => {
                self.now_ns += STEP_NS;
                let ns = |ms: &str| ms.parse::<u64>().unwrap() * 1_000_000;
                let window = Window {
                    begin_ns: self.now_ns.saturating_sub(ns(observed)),
                    end_ns: self.now_ns,
                    observed_cpu_ns: ns(observed),
                    missed_cpu_ns: ns(missed),
                    probe_cost_ns: ns(cost),
                    hits: ns(cost) / 1000,
                    aftermath_ns: 0,
                    work_samples: 1000 * (ns(observed).saturating_sub(ns(cost))) / 1_000_000,
                    probe_samples: ns(cost) / 1000,
                    collector_cpu_ns: 500_000,
                    interval_bytes: self.interval_bytes,
                    budget_ppm: 50_000,
                    is_last: rest == ["last"],
                };
                self.windows.push((self.events.len(), window));
                return;
            }
            ["memory", process, rest @ ..] => {
                self.now_ns += STEP_NS;
                let process = ProcessId(process.parse().unwrap());
                let (time_ns, memory) = (self.now_ns, memory(rest));
                let reading = MemoryReading { process, time_ns, memory };
                self.readings.push((self.events.len(), reading));
                return;
            }
            ["lost", count] => {
                let first_lost_ns = self.now_ns;
                self.now_ns += STEP_NS;
                let lost_count = count.parse().unwrap();
                self.events.push(Event::Loss { first_lost_ns, time_ns: self.now_ns, lost_count });
                return;
            }
            _ => {}
        }
        self.now_ns += STEP_NS;
        let (process, thread) = words[0].split_once(':').unwrap_or(("1", words[0]));
        let (process, thread) = (process.parse().unwrap(), ThreadId(thread.parse().unwrap()));
        self.call(process, thread, &words[1..]);
    }

    fn call(&mut self, process_number: u32, thread: ThreadId, words: &[&str]) {
        let (process, time_ns) = (ProcessId(process_number), self.now_ns);
        let (what, probe) = words[0].split_once('.').unwrap_or((words[0], "0"));
        let probe = ProbeId(probe.parse().unwrap());
        let words = &[&[what], &words[1..]].concat()[..];
        let event = match words {
            ["malloc", size, "=", at, stack] => Event::Allocation {
                process,
                thread,
                time_ns,
                address_avma: address(at),
                size_bytes: size.parse().unwrap(),
                stack: self.stack_of(&stack[1..], process_number),
                probe,
                interval_bytes: self.interval_bytes,
            },
            ["free", at] => Event::Free {
                process,
                thread,
                time_ns,
                address_avma: address(at),
                probe: Some(probe),
                caller: FreeCaller::Program,
            },
            ["free!", at] => Event::Free {
                process,
                thread,
                time_ns,
                address_avma: address(at),
                probe: Some(probe),
                caller: FreeCaller::AllocatorModule,
            },
            ["realloc>", at] => Event::ReallocationBegin {
                process,
                thread,
                time_ns,
                old_address_avma: address(at),
                probe: Some(probe),
            },
            ["realloc<", old, size, "=", new, stack] => Event::ReallocationEnd {
                process,
                thread,
                time_ns,
                old_address_avma: address(old),
                new_address_avma: address(new),
                size_bytes: size.parse().unwrap(),
                stack: self.stack_of(&stack[1..], process_number),
                probe,
                interval_bytes: self.interval_bytes,
            },
            ["realloc", old, rest @ ..] => {
                let (begin, end) = (format!("realloc>.{probe}"), format!("realloc<.{probe}"));
                self.call(process_number, thread, &[&begin, old]);
                return self.call(process_number, thread, &[&[&*end, old], rest].concat());
            }
            ["exit"] => Event::ThreadExit { process, thread, time_ns },
            other => panic!("no such event: {other:?}"),
        };
        self.events.push(event);
    }
}

fn memory(words: &[&str]) -> ProcessMemory {
    let mut memory = ProcessMemory::default();
    for pair in words.chunks_exact(2) {
        let bytes: u64 = pair[1].parse().unwrap();
        let half = MappedMemory { mapped_bytes: bytes, resident_bytes: bytes / 2 };
        match pair[0] {
            "anon" => memory.resident.get_or_insert_default().anonymous_bytes = bytes,
            "file" => memory.resident.get_or_insert_default().file_bytes = bytes,
            "shmem" => memory.resident.get_or_insert_default().shared_bytes = bytes,
            "pss" => memory.proportional_bytes = Some(bytes),
            "swap" => memory.swapped_bytes = Some(bytes),
            "peak" => memory.peak_resident_bytes = Some(bytes),
            "group" => {
                let path = "/system.slice/server".to_owned();
                memory.control_group = Some(ControlGroupMemory { path, bytes: Some(bytes) });
            }
            "brk" => memory.heap_mappings.get_or_insert_default().brk = half,
            "mapped" => memory.heap_mappings.get_or_insert_default().anonymous = half,
            other => panic!("no such memory: {other:?}"),
        }
    }
    memory
}

fn address(word: &str) -> u64 {
    if word == "null" { 0 } else { u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap() }
}

/// Reads a trace; panics on nonsense.
pub(crate) fn parse(text: &str) -> Trace {
    let mut trace = Trace::default();
    text.lines().for_each(|line| trace.line(line));
    trace
}
