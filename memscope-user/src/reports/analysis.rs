use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use rustc_hash::FxHashMap;

use super::{MemoryTimeline, processes::sums_by_process};
use crate::{
    lifetimes::{
        Block, FaultSite, FaultSums, LiveBlock, LossWindow, MappingSite, MappingTotals, Mismatch,
        Sampled, Site, SiteSums, ThreadRecord, Totals, Tracker, Windows,
    },
    model::{
        Capture, Counters, EndReason, ExactCounts, Frame, FrameId, FrameSymbols, Item, Module,
        ModuleId, Observes, PageSums, Probe, ProbeId, Process, ProcessEnd, ProcessId,
        SourceFunction, Stack, StackId, StackOutcome, ThreadId, ThreadName,
    },
    store::{Chunk, Damage, Reader, RecordingEnd, StoreError},
};

/// What a recording defines: the things that ids mean.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    /// In the order of their first observation.
    pub processes: BTreeMap<ProcessId, Process>,
    /// Of the processes that ended.
    pub process_ends: FxHashMap<ProcessId, ProcessEnd>,
    /// Of the processes that were forked by others of this recording.
    pub parents: FxHashMap<ProcessId, ProcessId>,
    /// Files mapped as code.
    pub modules: FxHashMap<ModuleId, Module>,
    /// Attached probes.
    pub probes: BTreeMap<ProbeId, Probe>,
    /// Places in code.
    pub frames: FxHashMap<FrameId, Frame>,
    /// Call chains.
    pub stacks: FxHashMap<StackId, Stack>,
    /// Names of the frames, innermost inlined function first.
    pub symbols: FxHashMap<FrameId, Vec<SourceFunction>>,
    /// Names of threads that are not called as their processes.
    pub thread_names: FxHashMap<(ProcessId, ThreadId), String>,
}

impl Definitions {
    /// Why a process image ended; none if it was alive when the trace ended.
    #[must_use]
    pub fn end_of(&self, process: ProcessId) -> Option<EndReason> {
        self.process_ends.get(&process).map(|end| end.reason)
    }

    fn apply(&mut self, item: &Item) {
        match item {
            Item::Process(process) => {
                self.processes.insert(process.id, process.clone());
            }
            Item::ProcessEnd(end) => {
                self.process_ends.insert(end.process, end.clone());
            }
            Item::Fork(fork) => {
                self.parents.insert(fork.process, fork.parent);
            }
            Item::Module(module) => {
                self.modules.insert(module.id, module.clone());
            }
            Item::Probe(probe) => {
                self.probes.insert(probe.id, probe.clone());
            }
            Item::Frame(frame) => {
                self.frames.insert(frame.id, *frame);
            }
            Item::Stack(stack) => {
                self.stacks.insert(stack.id, stack.clone());
            }
            Item::Symbols(FrameSymbols { frame, functions }) => {
                self.symbols.insert(*frame, functions.clone());
            }
            Item::Event(_)
            | Item::Counters(_)
            | Item::ExactCounts(_)
            | Item::Counted(_)
            | Item::Window(_)
            | Item::Memory(_)
            | Item::PageSums(_)
            | Item::MappingsObserved
            | Item::Owner(_)
            | Item::AllocatorCall(_)
            | Item::AllocatedSince(_) => {}
            Item::ThreadName(ThreadName { process, thread, name }) => {
                self.thread_names.insert((*process, *thread), name.clone());
            }
        }
    }
}

/// Follows a recording item by item.
#[derive(Debug, Default)]
pub struct Analyzer {
    definitions: Definitions,
    tracker: Tracker,
    counters: Option<Counters>,
    exact: Option<ExactCounts>,
    memory: BTreeMap<ProcessId, MemoryTimeline>,
    page_sums: Option<PageSums>,
    observes_mappings: bool,
    last_event_ns: u64,
}

impl Analyzer {
    /// Takes the next item; gives the blocks that it ends.
    pub fn apply(&mut self, item: &Item, ended: impl FnMut(&Block)) {
        match item {
            Item::Event(event) => {
                self.last_event_ns = self.last_event_ns.max(event.time_ns());
                self.tracker.apply(event, ended);
            }
            Item::ProcessEnd(end) => {
                self.last_event_ns = self.last_event_ns.max(end.time_ns);
                self.tracker.end_process(end.process);
            }
            Item::Counters(counters) => self.counters = Some(counters.clone()),
            Item::ExactCounts(exact) => self.exact = Some(exact.clone()),
            Item::PageSums(sums) => self.page_sums = Some(*sums),
            Item::MappingsObserved => self.observes_mappings = true,
            Item::Owner(owner) => self.tracker.owner(owner),
            Item::AllocatorCall(call) => self.tracker.allocator_call(call),
            Item::AllocatedSince(since) => self.tracker.allocated_since(since),
            Item::Counted(counted) => {
                self.last_event_ns = self.last_event_ns.max(counted.time_ns);
                self.tracker.counted(counted);
            }
            Item::Fork(fork) => {
                self.last_event_ns = self.last_event_ns.max(fork.time_ns);
                self.tracker.fork(fork);
            }
            Item::Window(window) => {
                self.last_event_ns = self.last_event_ns.max(window.end_ns);
                self.tracker.end_window(window, ended);
            }
            Item::Memory(reading) => {
                self.last_event_ns = self.last_event_ns.max(reading.time_ns);
                let live = self.tracker.live_of(reading.process);
                let process = self.definitions.processes.get(&reading.process);
                let has_run = process.is_some_and(|process| !process.from_start);
                self.memory.entry(reading.process).or_default().add(reading, live, has_run);
            }
            _ => {}
        }
        // Most items are events, which define nothing.
        if !matches!(item, Item::Event(_)) {
            self.definitions.apply(item);
        }
    }

    /// What is known of the blocks.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// What page faults have made resident; none if these are not observed.
    #[must_use]
    pub fn faulted_bytes(&self) -> Option<u64> {
        self.page_sums.map(|_| self.tracker.fault_totals().resident.total())
    }

    /// Everything that was found, given what the recording says of itself.
    #[must_use]
    pub fn finish(self, capture: Capture, end: RecordingEnd) -> Analysis {
        self.finish_with_tracker(capture, end).0
    }

    fn finish_with_tracker(mut self, capture: Capture, end: RecordingEnd) -> (Analysis, Tracker) {
        let lost = self.counters.as_ref().map_or(0, Counters::lost_total);
        if lost > self.tracker.totals().marked_losses {
            // Some of it nobody has told yet when recording ended.
            self.tracker.distrust();
        }
        let ended_at_ns = match &end {
            RecordingEnd::Complete(ending) => ending.ended_at_ns,
            // What was observed reaches to the last event that was saved.
            RecordingEnd::Truncated => self.last_event_ns.max(capture.started_at_ns),
        };
        let (sites, totals) = self.tracker.scaled();
        let mut stack_outcomes = BTreeMap::new();
        for site in &sites {
            let stack = self.definitions.stacks.get(&site.key.stack);
            let outcome = stack.map_or(StackOutcome::FramesLost, |stack| stack.outcome);
            let count: &mut u64 = stack_outcomes.entry(outcome).or_default();
            *count = count
                .wrapping_add(site.sums.allocations.wrapping_add(site.sums.failed_allocations));
        }
        let fault_sites = self.tracker.fault_sites().to_vec();
        for site in &fault_sites {
            let stack = self.definitions.stacks.get(&site.key.stack);
            let outcome = stack.map_or(StackOutcome::FramesLost, |stack| stack.outcome);
            let count: &mut u64 = stack_outcomes.entry(outcome).or_default();
            *count = count.wrapping_add(site.sums.faults);
        }
        let mut live_ages: FxHashMap<u32, LiveAge> = FxHashMap::default();
        for (_, _, block) in self.tracker.live_blocks() {
            let age = live_ages
                .entry(block.site)
                .or_insert(LiveAge { oldest_allocated_ns: u64::MAX, newest_allocated_ns: 0 });
            age.oldest_allocated_ns = age.oldest_allocated_ns.min(block.allocated_ns);
            age.newest_allocated_ns = age.newest_allocated_ns.max(block.allocated_ns);
        }
        let mut sampled: Option<Sampled> = None;
        for of_site in sites.iter().filter_map(|site| site.sampled.as_ref()) {
            sampled.get_or_insert_default().merge(of_site);
        }
        let sums = sites.iter().map(|site| (site.key.process, &site.sums));
        let analysis = Analysis {
            threads: self.tracker.threads(),
            process_sums: sums_by_process(sums),
            totals,
            mismatches: self.tracker.mismatches(),
            windows: self.tracker.windows().clone(),
            loss_windows: self.tracker.loss_windows().to_vec(),
            definitions: self.definitions,
            counters: self.counters,
            exact: self.exact,
            memory: timelines(self.memory, self.page_sums),
            page_sums: self.page_sums,
            fault_sites,
            fault_totals: self.tracker.fault_totals(),
            mapping_sites: self.tracker.mapping_sites().to_vec(),
            mapping_totals: self.observes_mappings.then(|| self.tracker.mapping_totals()),
            capture,
            end,
            ended_at_ns,
            sites,
            stack_outcomes,
            live_ages,
            sampled,
            damages: Vec::new(),
            damage_count: 0,
        };
        (analysis, self.tracker)
    }
}

/// Where faults were observed, nothing is known of blocks.
fn timelines(
    mut memory: BTreeMap<ProcessId, MemoryTimeline>,
    page_sums: Option<PageSums>,
) -> BTreeMap<ProcessId, MemoryTimeline> {
    if page_sums.is_some() {
        memory.values_mut().for_each(MemoryTimeline::forget_blocks);
    }
    memory
}

/// Everything that the reports are made of.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// What the recording says of itself.
    pub capture: Capture,
    /// How it ends.
    pub end: RecordingEnd,
    /// `CLOCK_MONOTONIC` when observation ended.
    pub ended_at_ns: u64,
    /// What the ids mean.
    pub definitions: Definitions,
    /// Sums over everything.
    pub totals: Totals,
    /// Per site; a block's `site` is an index into it.
    pub sites: Vec<Site>,
    /// The same by process.
    pub process_sums: FxHashMap<ProcessId, SiteSums>,
    /// The same by thread.
    pub threads: Vec<ThreadRecord>,
    /// Blocks of which another allocator than their own was to free or reallocate.
    pub mismatches: Vec<Mismatch>,
    /// When the live blocks of a site began, by index of the site.
    pub live_ages: FxHashMap<u32, LiveAge>,
    /// What the sampled blocks tell; none if none was sampled.
    pub sampled: Option<Sampled>,
    /// How many allocations, or page faults, have a stack of each outcome.
    pub stack_outcomes: BTreeMap<StackOutcome, u64>,
    /// What the kernel side counted; none if the recording was cut before it said so.
    pub counters: Option<Counters>,
    /// What it counted of all calls while it sampled; none in full mode.
    pub exact: Option<ExactCounts>,
    /// How much memory processes had over time.
    pub memory: BTreeMap<ProcessId, MemoryTimeline>,
    /// What became of resident memory beside page faults; none if these were not observed.
    pub page_sums: Option<PageSums>,
    /// Page faults, per process and stack.
    pub fault_sites: Vec<FaultSite>,
    /// All of them together.
    pub fault_totals: FaultSums,
    /// What was mapped by system calls, per process, stack and kind.
    pub mapping_sites: Vec<MappingSite>,
    /// All of that together; none if it was not observed.
    pub mapping_totals: Option<MappingTotals>,
    /// When the targets were observed, if a budget was to be kept: what it has cost, and what
    /// numbers were scaled by.
    pub windows: Windows,
    /// Stretches in which records are missing.
    pub loss_windows: Vec<LossWindow>,
    /// Where the file is damaged; at most the first thousand.
    pub damages: Vec<Damage>,
    /// How many places of damage there are.
    pub damage_count: u64,
}

/// When the live blocks of a site began, `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveAge {
    /// The oldest one.
    pub oldest_allocated_ns: u64,
    /// The newest one.
    pub newest_allocated_ns: u64,
}

impl Analysis {
    /// How long was observed.
    #[must_use]
    pub fn duration_ns(&self) -> u64 {
        self.ended_at_ns.saturating_sub(self.capture.started_at_ns)
    }

    /// What was observed of the targets.
    #[must_use]
    pub fn observed(&self) -> Observes {
        match self.page_sums {
            Some(_) => Observes::PageFaults,
            None => Observes::Allocations,
        }
    }

    /// Whether the numbers are estimates.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.capture.sampling_interval_bytes.is_some() || self.sampled.is_some()
    }

    /// Records known to be missing; `None` if the recording does not say.
    #[must_use]
    pub fn lost_events(&self) -> Option<u64> {
        let sum = |counters: &Counters| {
            // A forged recording can have more than a u64 holds.
            counters.lost.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count))
        };
        self.counters.as_ref().map(sum)
    }

    /// Whether everything that the target did while it was observed is in here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.end, RecordingEnd::Complete(_))
            && self.lost_events() == Some(0)
            && self.damage_count == 0
            && self.totals.unseen_ends == 0
            && self.totals.marked_losses == 0
            && !self.windows.has_gaps()
            && (self.page_sums.is_some() || !self.definitions.probes.is_empty())
            && !self.definitions.processes.values().any(|process| process.probed_late)
    }
}

/// Why a recording could not be analysed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReadError(#[from] StoreError);

/// Reads a whole recording.
///
/// # Errors
///
/// If it cannot be read; damage and a missing end are told in the analysis.
pub fn analyze<R: Read + Seek>(reader: Reader<R>) -> Result<Analysis, ReadError> {
    replay(reader, |_| {}).map(|(analysis, _)| analysis)
}

/// What became of a block.
#[derive(Clone, Copy, Debug)]
pub enum BlockFate<'a> {
    /// It ended.
    Ended(&'a Block),
    /// It was live when the trace ended.
    Live {
        /// Whose.
        process: ProcessId,
        /// Where it is.
        address_avma: u64,
        /// What it is.
        block: &'a LiveBlock,
    },
}

/// Reads a whole recording and gives every block: first those that end, in the
/// order in which they do, then those that are live at the end, in no order.
///
/// # Errors
///
/// As [`analyze`].
pub fn replay_blocks<R: Read + Seek>(
    reader: Reader<R>,
    mut each: impl FnMut(BlockFate<'_>),
) -> Result<Analysis, ReadError> {
    let (analysis, tracker) = replay(reader, |block| each(BlockFate::Ended(block)))?;
    for (process, address_avma, block) in tracker.live_blocks() {
        each(BlockFate::Live { process, address_avma, block: &block });
    }
    Ok(analysis)
}

fn replay<R: Read + Seek>(
    mut reader: Reader<R>,
    mut ended: impl FnMut(&Block),
) -> Result<(Analysis, Tracker), ReadError> {
    let capture = reader.capture().clone();
    let mut analyzer = Analyzer::default();
    while let Some(chunk) = reader.next_chunk()? {
        if let Chunk::Items(items) = chunk {
            for item in &items {
                analyzer.apply(item, &mut ended);
            }
        }
    }
    if reader.damage_count() > 0 {
        analyzer.tracker.distrust();
    }
    let (mut analysis, tracker) = analyzer.finish_with_tracker(capture, reader.end());
    analysis.damages = reader.damages().to_vec();
    analysis.damage_count = reader.damage_count();
    Ok((analysis, tracker))
}
