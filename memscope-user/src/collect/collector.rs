mod late;
mod mappings;
mod target;
mod threads;

use memscope_common::record::{
    self, Header, NO_STATUS, OUTCOME_CALLER_ONLY, OUTCOME_COMPLETE, OUTCOME_DEPTH_LIMIT,
    OUTCOME_FRAME_POINTER_BROKEN, OUTCOME_FRAME_POINTERS_ENDED, OUTCOME_NO_TABLES,
    OUTCOME_NOT_UPWARD, OUTCOME_NULL_RETURN, OUTCOME_STACK_UNREADABLE, OUTCOME_TABLES_REPLACED,
    OUTCOME_UNKNOWN_CODE, OUTCOME_UNSUPPORTED_RULE, RESIDENT_ANONYMOUS, RESIDENT_FILE,
    RESIDENT_SHARED, STACK_TABLES_OLD, STACK_USED_FRAME_POINTERS,
};
use rustc_hash::{FxHashMap, FxHashSet};

use late::Probes;
pub use late::Probing;
use target::{Early, Target, note_allocator};

use super::{
    address_space::{AddressSpace, CodeRange, Content, Observation, ProcessView, WalkedCopy},
    decode::{Allocation, CopiedStack, Free, OfImage, Record, StackFrames, is_fork, parent_of},
    stacks::{FoundStack, StackTable},
};
use crate::model::{
    AllocatedSince, AllocatorCall, AllocatorId, CountedAllocations, EndReason, Event, Fork, Frame,
    FrameId, FreeCaller, Item, Location, MemoryReading, ModuleId, Probe, ProbeId, ProbeOwner,
    Process, ProcessEnd, ProcessId, ProcessMemory, ResidentBytes, StackOutcome, ThreadId,
};

/// An address without a known range makes the collector look at the process again,
/// but no more often than this.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// Most processes, and of each what happened to its memory, that are kept before the record which says
/// that the process is followed.
const MAX_EARLY_TARGETS: usize = 256;
const MAX_EARLY_EVENTS: usize = 256;

/// The kernel counts resident memory in pages, which have this size on x86-64.
const PAGE_BYTES: u64 = 4096;

/// A process that is to be followed from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStart {
    /// Its index.
    pub target: u16,
    /// Its process id.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub start_ticks: u64,
    /// `CLOCK_MONOTONIC` of this moment.
    pub time_ns: u64,
    /// Whether it has not run its first instruction yet.
    pub from_start: bool,
    /// Where the heap ends that `brk` moves, if it has one.
    pub heap_end_avma: Option<u64>,
}

/// What came of the stacks that the kernel side has copied, as it could not walk them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopiedStacks {
    /// All of them.
    pub count: u64,
    /// Those of which every frame was found.
    pub complete: u64,
}

/// Gives ids to what records speak of.
#[derive(Debug)]
pub struct Collector<V> {
    view: V,
    targets: FxHashMap<u16, Target>,
    /// Each with the first one of its function, which events are told by: a function can have several.
    probes: FxHashMap<ProbeId, ProbeId>,
    functions: FxHashMap<(ModuleId, String), ProbeId>,
    known_modules: FxHashSet<ModuleId>,
    frames: FxHashMap<Location, FrameId>,
    stacks: StackTable,
    copied: CopiedStacks,
    process_count: u32,
    nonsense: u64,
    /// What was told of targets before the records that begin them.
    early: FxHashMap<u16, Vec<Early>>,
    known_probes: Probes,
}

impl<V: ProcessView> Collector<V> {
    /// A collector that knows nothing yet but how allocators are probed.
    pub fn new(view: V, probing: Probing) -> Self {
        Self {
            view,
            targets: FxHashMap::default(),
            probes: FxHashMap::default(),
            functions: FxHashMap::default(),
            known_modules: FxHashSet::default(),
            frames: FxHashMap::default(),
            stacks: StackTable::default(),
            copied: CopiedStacks::default(),
            process_count: 0,
            nonsense: 0,
            early: FxHashMap::default(),
            known_probes: Probes::new(probing),
        }
    }

    /// What it looks at the targets with.
    pub fn view(&self) -> &V {
        &self.view
    }

    /// How many records spoke of targets or probes that there are not.
    pub fn nonsense(&self) -> u64 {
        self.nonsense
    }

    /// What came of the stacks that the kernel side has copied.
    pub fn copied_stacks(&self) -> CopiedStacks {
        self.copied
    }

    /// How many stacks were too many to be kept whole.
    pub fn stacks_over_limit(&self) -> u64 {
        self.stacks.over_limit()
    }

    /// Makes a probe known, before any record of it comes, and whose it is, if that is known.
    pub fn define_probe(
        &mut self,
        probe: Probe,
        owner: Option<ProbeOwner>,
        mut give: impl FnMut(Item),
    ) {
        let function = (probe.module, probe.function.clone());
        let first = *self.functions.entry(function).or_insert(probe.id);
        self.probes.insert(probe.id, first);
        give(Item::Probe(probe));
        if let Some(owner) = owner {
            give(Item::Owner(owner));
        }
    }

    /// Begins to follow a process.
    pub fn start_target(&mut self, start: &TargetStart, mut give: impl FnMut(Item)) {
        let id = self.next_process();
        let process = Process {
            id,
            pid: start.pid,
            start_ticks: start.start_ticks,
            image: 0,
            observed_from_ns: start.time_ns,
            comm: String::new(),
            exe: String::new(),
            allocators: Vec::new(),
            from_start: start.from_start,
            probed_late: false,
        };
        give(Item::Process(process.clone()));
        self.targets.insert(start.target, Target::new(process, start.heap_end_avma));
        self.look(start.target, start.time_ns, &mut give);
    }

    /// The kernel side follows a process by itself.
    fn begin_process(&mut self, begin: &record::ProcessBegin, give: &mut impl FnMut(Item)) {
        let header = &begin.header;
        let of_parent = OfImage { target: begin.parent_target, image: begin.parent_image };
        let parent_id =
            parent_of(begin).and_then(|_| self.process(of_parent, header.time_ns, give));
        let copied = parent_id.filter(|_| is_fork(begin)).zip(self.targets.get(&of_parent.target));
        let heap_end_avma = copied.and_then(|(_, parent)| parent.heap_end_avma);
        let (exe, allocators, space, image_since_ns, is_unsure) = match copied {
            Some((_, Target { process, space, image_since_ns, is_unsure, .. })) => {
                let (exe, allocators) = (process.exe.clone(), process.allocators.clone());
                (exe, allocators, space.clone(), *image_since_ns, *is_unsure)
            }
            // All that was mapped since it emptied its memory is of this image.
            None => (String::new(), Vec::new(), AddressSpace::default(), 0, false),
        };
        let copy_of = copied.map(|(parent, _)| parent);
        let id = self.next_process();
        let process = Process {
            id,
            pid: begin.pid,
            start_ticks: self.view.start_ticks(header.target).unwrap_or(0),
            image: header.image.into(),
            observed_from_ns: header.time_ns,
            comm: name_of(&begin.comm),
            exe,
            allocators,
            // Else its probes are attached as soon as it is noticed.
            from_start: self.known_probes.probing != Probing::Processes,
            probed_late: self.known_probes.probing == Probing::Processes,
        };
        give(Item::Process(process.clone()));
        if let Some(parent) = copy_of {
            give(Item::Fork(Fork { process: id, parent, time_ns: header.time_ns }));
        }
        let mut target = Target {
            space,
            image_since_ns,
            outdated: copy_of.is_none(),
            runs_since_ns: Some(header.time_ns),
            is_unsure,
            ..Target::new(process, heap_end_avma)
        };
        let mut is_new = false;
        for early in self.early.remove(&header.target).unwrap_or_default() {
            match early {
                Early::Mapped(time_ns, range) => is_new |= target.map(time_ns, range),
                Early::Replaced(time_ns) if copy_of.is_some() => target.space.replaced(time_ns),
                // By the exec that it begins with.
                Early::Replaced(_) => {}
            }
        }
        if is_new {
            give(Item::Process(target.process.clone()));
        }
        self.targets.insert(header.target, target);
        self.judge(header.target, give);
    }

    /// The kernel side has seen a target end. Counts of its stacks can still come.
    fn exit_process(&mut self, exit: &record::ProcessExit, give: &mut impl FnMut(Item)) {
        self.process_of(&exit.header, give);
        let status = (exit.wait_status != NO_STATUS).then(|| status_of(exit.wait_status));
        self.end(exit.header.target, exit.header.time_ns, status, give);
    }

    /// A target has exited, unless that was said before.
    fn end(&mut self, target: u16, time_ns: u64, status: Option<i32>, give: &mut impl FnMut(Item)) {
        let target = self.targets.get_mut(&target).filter(|target| !target.has_ended());
        let Some(target) = target else { return };
        target.judge_image(&self.known_probes, give);
        give(target.end(time_ns, status));
    }

    /// A target has exited; nothing of it will come any more.
    pub fn end_target(
        &mut self,
        target: u16,
        time_ns: u64,
        status: Option<i32>,
        mut give: impl FnMut(Item),
    ) {
        self.end(target, time_ns, status, &mut give);
        if let Some(target) = self.targets.get(&target) {
            self.stacks.end_process(target.process.id);
        }
    }

    /// No record of a target that has ended is to be expected any more: what it had mapped is
    /// forgotten.
    pub fn forget_target(&mut self, target: u16, mut give: impl FnMut(Item)) {
        let Some(target) = self.targets.get_mut(&target).filter(|target| target.has_ended()) else {
            return;
        };
        target.judge_whole(&self.known_probes, &mut give);
        target.forget();
    }

    /// Looks at the targets that have changed, so that new modules are noticed even
    /// while nothing is allocated.
    pub fn refresh(&mut self, now_ns: u64, mut give: impl FnMut(Item)) {
        let outdated: Vec<u16> = self
            .targets
            .iter()
            .filter(|(_, target)| target.outdated && !target.has_ended())
            .map(|(index, _)| *index)
            .collect();
        for target in outdated {
            self.look(target, now_ns, &mut give);
        }
    }

    /// The kernel has told that code was mapped into a target. To be said before any record made
    /// by that code comes; later ones of the code that was there before find that all the same.
    pub fn mapped(
        &mut self,
        target: u16,
        time_ns: u64,
        range: CodeRange,
        mut give: impl FnMut(Item),
    ) {
        define_module(&mut self.known_modules, &range, &mut give);
        // Compilers of generated code map all the time.
        let can_be_late = range.content != Content::NoAllocator;
        match self.targets.get_mut(&target) {
            None => self.keep_early(target, Early::Mapped(time_ns, range)),
            Some(state) if state.has_ended() => {}
            Some(state) => {
                if state.map(time_ns, range) {
                    give(Item::Process(state.process.clone()));
                }
                if can_be_late {
                    self.judge(target, &mut give);
                }
            }
        }
    }

    fn keep_early(&mut self, target: u16, early: Early) {
        if self.early.len() < MAX_EARLY_TARGETS || self.early.contains_key(&target) {
            let of_target = self.early.entry(target).or_default();
            if of_target.len() < MAX_EARLY_EVENTS {
                of_target.push(early);
            }
        }
    }

    /// The kernel has told that a target emptied its address space, for an exec whose own record
    /// is still to come.
    pub fn replaced(&mut self, target: u16, time_ns: u64) {
        match self.targets.get_mut(&target) {
            None => self.keep_early(target, Early::Replaced(time_ns)),
            // The exec that began the present image has no record if it came before the trace.
            Some(target) if time_ns > target.image_since_ns => target.space.replaced(time_ns),
            Some(_) => {}
        }
    }

    /// The kernel could not tell of all that was mapped since a moment; so it has to be looked for.
    pub fn mappings_lost(&mut self, since_ns: u64, mut give: impl FnMut(Item)) {
        for target in self.targets.values_mut() {
            if target.ended_ns.is_some_and(|ended_ns| ended_ns < since_ns) {
                continue;
            }
            target.outdated = true;
            target.is_unsure = true;
            target.space.events_lost();
            if target.has_ended() {
                target.judge_image(&self.known_probes, &mut give);
            }
        }
    }

    /// Allocations of which only the sum is known, as they were counted up to a moment. `of`
    /// says whose, `stack` the number of their stack. Those of an image that has ended stay lost.
    pub fn counted(
        &mut self,
        of: OfImage,
        stack: u32,
        (allocations, bytes): (u64, u64),
        time_ns: u64,
        mut give: impl FnMut(Item),
    ) {
        let target = self.targets.get(&of.target);
        // Numbers of an image that has ended mean nothing any more.
        if target.is_none_or(|target| target.process.image as u16 != of.image) {
            return;
        }
        let Some(process) = self.process(of, time_ns, &mut give) else {
            return;
        };
        let stack = self.stacks.of_event(process, stack, |stack| give(Item::Stack(stack)));
        let counted = CountedAllocations { process, stack, time_ns, allocations, bytes };
        give(Item::Counted(counted));
    }

    /// The memory of a target was read at a moment. To be said before any later record of it is
    /// taken.
    pub fn memory_read(
        &mut self,
        target: u16,
        time_ns: u64,
        memory: ProcessMemory,
        mut give: impl FnMut(Item),
    ) {
        if let Some(target) = self.targets.get(&target).filter(|target| !target.has_ended()) {
            let process = target.process.id;
            give(Item::Memory(MemoryReading { process, time_ns, memory }));
        }
    }

    /// How many ranges of code were forgotten for want of room, of all targets.
    pub fn forgotten_ranges(&self) -> u64 {
        self.targets.values().map(|target| target.space.forgotten()).sum()
    }

    /// Takes the next record.
    pub fn take(&mut self, record: &Record, mut give: impl FnMut(Item)) {
        let give = &mut give;
        let event = match record {
            Record::Allocation(record) => self.allocation(record, give),
            Record::Free(record) => self.free(record, give),
            Record::ReallocationBegin(record) => self.reallocation_begin(record, give),
            Record::ReallocationEnd(record) => self.reallocation_end(record, give),
            Record::Stack(stack) => return self.stack(stack, give),
            Record::StackCopy(stack) => return self.copied_stack(stack, give),
            Record::Loss(loss) => Some(Event::Loss {
                first_lost_ns: loss.first_lost_ns,
                time_ns: loss.header.time_ns,
                lost_count: loss.lost_count,
            }),
            Record::ProcessBegin(record) => return self.begin_process(record, give),
            Record::ProcessExit(record) => return self.exit_process(record, give),
            Record::Exec(record) => {
                self.process_of(&record.header, give);
                self.name(record.header.target, &record.comm, give);
                if record.leader_replaced != 0 && self.known_probes.probing == Probing::Processes {
                    self.view.probes_gone(record.header.target);
                    self.probed_late(record.header.target, give);
                }
                return;
            }
            Record::ThreadExit(record) => self.thread_exit(record, give),
            Record::PageFault(record) => self.page_fault(record, give),
            Record::MappingChange(record) => self.mapping_change(record, give),
            Record::AllocatorCall(record) => {
                let known = |number: u16| (number != 0).then_some(AllocatorId(number.into()));
                let (outer, inner) = (known(record.outer), known(record.inner));
                return give(Item::AllocatorCall(AllocatorCall { outer, inner }));
            }
            Record::CodeChanged(record) => {
                self.process_of(&record.header, give);
                if let Some(target) = self.targets.get_mut(&record.header.target) {
                    target.outdated = true;
                }
                return;
            }
        };
        if let Some(event) = event {
            give(Item::Event(event));
        }
    }

    fn allocation(&mut self, record: &Allocation, give: &mut impl FnMut(Item)) -> Option<Event> {
        let process = self.process(record.of, record.time_ns, give)?;
        Some(Event::Allocation {
            process,
            thread: ThreadId(record.thread),
            time_ns: record.time_ns,
            address_avma: record.address_avma,
            size_bytes: record.size_bytes,
            stack: self.stacks.of_event(process, record.stack, |stack| give(Item::Stack(stack))),
            probe: self.probe(record.probe)?,
            interval_bytes: record.interval_bytes,
        })
    }

    fn free(&mut self, record: &Free, give: &mut impl FnMut(Item)) -> Option<Event> {
        let process = self.process(record.of, record.time_ns, give)?;
        let thread = ThreadId(record.thread);
        if record.allocated_since {
            give(Item::AllocatedSince(AllocatedSince { process, thread }));
        }
        Some(Event::Free {
            process,
            thread,
            time_ns: record.time_ns,
            address_avma: record.address_avma,
            probe: self.known_probe(record.probe),
            caller: if record.is_internal {
                FreeCaller::AllocatorModule
            } else {
                FreeCaller::Program
            },
        })
    }

    fn reallocation_begin(
        &mut self,
        record: &record::ReallocationBegin,
        give: &mut impl FnMut(Item),
    ) -> Option<Event> {
        let process = self.process_of(&record.header, give)?;
        let thread = ThreadId(record.thread);
        if record.allocated_since != 0 {
            give(Item::AllocatedSince(AllocatedSince { process, thread }));
        }
        Some(Event::ReallocationBegin {
            process,
            thread,
            time_ns: record.header.time_ns,
            old_address_avma: record.old_address_avma,
            probe: self.known_probe(record.header.probe),
        })
    }

    fn reallocation_end(
        &mut self,
        record: &record::ReallocationEnd,
        give: &mut impl FnMut(Item),
    ) -> Option<Event> {
        let process = self.process_of(&record.header, give)?;
        Some(Event::ReallocationEnd {
            process,
            thread: ThreadId(record.thread),
            time_ns: record.header.time_ns,
            old_address_avma: record.old_address_avma,
            new_address_avma: record.new_address_avma,
            size_bytes: record.size_bytes,
            stack: self.stacks.of_event(process, record.stack, |stack| give(Item::Stack(stack))),
            probe: self.probe(record.header.probe)?,
            interval_bytes: record.interval_bytes,
        })
    }

    fn page_fault(
        &mut self,
        record: &record::PageFault,
        give: &mut impl FnMut(Item),
    ) -> Option<Event> {
        let process = self.process_of(&record.header, give)?;
        let bytes = |kind: usize| {
            let pages = record.resident_pages.get(kind).copied().unwrap_or(0);
            u64::from(pages) * PAGE_BYTES
        };
        Some(Event::PageFault {
            process,
            thread: ThreadId(record.thread),
            time_ns: record.header.time_ns,
            address_avma: record.address_avma,
            stack: self.stacks.of_event(process, record.stack, |stack| give(Item::Stack(stack))),
            resident: ResidentBytes {
                anonymous: bytes(RESIDENT_ANONYMOUS),
                file: bytes(RESIDENT_FILE),
                shared: bytes(RESIDENT_SHARED),
            },
            is_major: record.is_major != 0,
        })
    }

    fn probe(&mut self, probe: u16) -> Option<ProbeId> {
        let known = self.known_probe(probe);
        self.nonsense += u64::from(known.is_none());
        known
    }

    /// Of what is worth recording even if it does not say by which function.
    fn known_probe(&self, probe: u16) -> Option<ProbeId> {
        self.probes.get(&ProbeId(probe.into())).copied()
    }

    fn next_process(&mut self) -> ProcessId {
        self.process_count += 1;
        ProcessId(self.process_count - 1)
    }

    fn process_of(&mut self, header: &Header, give: &mut impl FnMut(Item)) -> Option<ProcessId> {
        self.process(OfImage::of(header), header.time_ns, give)
    }

    /// The process image that a record speaks of. A newer image than the one known is
    /// an exec, told by its own record or, if that was lost, by the first after it.
    fn process(
        &mut self,
        of: OfImage,
        time_ns: u64,
        give: &mut impl FnMut(Item),
    ) -> Option<ProcessId> {
        let Some(target) = self.targets.get(&of.target) else {
            self.nonsense += 1;
            return None;
        };
        let (known, id) = (target.process.image as u16, target.process.id);
        if of.image == known {
            return Some(id);
        }
        let newer = of.image.wrapping_sub(known);
        if newer > u16::MAX / 2 {
            // Of an image that has ended: its last record was the exec.
            self.nonsense += 1;
            return None;
        }
        let new_id = self.next_process();
        let target = self.targets.get_mut(&of.target)?;
        target.judge_image(&self.known_probes, give);
        give(Item::ProcessEnd(ProcessEnd { process: id, time_ns, reason: EndReason::Exec }));
        self.stacks.end_process(id);
        target.exec(new_id, newer, time_ns);
        give(Item::Process(target.process.clone()));
        target.judge_exec(&self.known_probes, give);
        Some(new_id)
    }

    /// What a target is called since its exec.
    fn name(&mut self, target: u16, comm: &[u8], give: &mut impl FnMut(Item)) {
        let comm = name_of(comm);
        if let Some(target) = self.targets.get_mut(&target)
            && target.process.comm != comm
            && !comm.is_empty()
        {
            target.process.comm = comm;
            give(Item::Process(target.process.clone()));
        }
    }

    fn stack(&mut self, stack: &StackFrames, give: &mut impl FnMut(Item)) {
        let header = &stack.header;
        let Some(process) = self.process_of(&header.header, give) else {
            return;
        };
        let number = header.stack as u32;
        if self.stacks.is_defined(process, number) {
            return;
        }
        self.look_if_outdated(&header.header, give);
        let mut outcome = outcome_of(header.outcome);
        if header.flags & STACK_TABLES_OLD != 0 && !self.walked_what_was_there(stack) {
            outcome = StackOutcome::TablesOutdated;
        }
        let walked = WalkedCopy {
            frames_avma: stack.frames_avma.clone(),
            outcome,
            used_frame_pointers: header.flags & STACK_USED_FRAME_POINTERS != 0,
            unknown_avma: None,
        };
        let found = self.found(&header.header, process, walked, give);
        self.stacks.define(process, number, false, found, |stack| give(Item::Stack(stack)));
    }

    /// A stack that the kernel side could not walk.
    fn copied_stack(&mut self, stack: &CopiedStack, give: &mut impl FnMut(Item)) {
        let copy = &stack.copy;
        let Some(process) = self.process_of(&copy.header, give) else {
            return;
        };
        self.look_if_outdated(&copy.header, give);
        let mut walked = self.walk_copy(stack);
        let unknown_avma = walked.as_ref().and_then(|walked| walked.unknown_avma);
        if let Some(avma) = unknown_avma
            && self.look_for(avma, &copy.header, give)
        {
            walked = self.walk_copy(stack);
        }
        let walked = walked.unwrap_or_else(|| WalkedCopy {
            frames_avma: vec![copy.return_avma],
            outcome: match outcome_of(copy.outcome) {
                _ if copy.flags & STACK_TABLES_OLD != 0 => StackOutcome::TablesOutdated,
                // Of a walk whose frames are not here.
                StackOutcome::Complete | StackOutcome::WithFramePointers => {
                    StackOutcome::UnknownReason
                }
                reason => reason,
            },
            used_frame_pointers: false,
            unknown_avma: None,
        });
        let found = self.found(&copy.header, process, walked, give);
        self.copied.count += 1;
        self.copied.complete += u64::from(found.outcome == StackOutcome::Complete);
        self.stacks
            .define(process, copy.stack as u32, true, found, |stack| give(Item::Stack(stack)));
    }

    fn walk_copy(&mut self, stack: &CopiedStack) -> Option<WalkedCopy> {
        let target = stack.copy.header.target;
        let space = &self.targets.get(&target)?.space;
        let time_ns = stack.copy.header.time_ns;
        self.view.walk_copy(target, stack, &|avma| space.range_at(avma, time_ns))
    }

    /// What a walk has found, by ids.
    fn found(
        &mut self,
        header: &Header,
        process: ProcessId,
        walked: WalkedCopy,
        give: &mut impl FnMut(Item),
    ) -> FoundStack {
        let WalkedCopy { frames_avma, mut outcome, used_frame_pointers, .. } = walked;
        let mut frames = Vec::with_capacity(frames_avma.len());
        for (depth, return_avma) in frames_avma.iter().enumerate() {
            match self.locate(header, process, *return_avma, give) {
                Some(location) => frames.push(self.frame(location, give)),
                // Followed a register that held no frame pointer into data.
                None if depth > 0 && used_frame_pointers => {
                    outcome = StackOutcome::FramePointerBroken;
                    break;
                }
                // There the call returns to, whatever is mapped there.
                None => {
                    let location = Location::Unmapped { process, address_avma: *return_avma };
                    frames.push(self.frame(location, give));
                }
            }
        }
        FoundStack { outcome, frames }
    }

    /// Whether all that a stack passed was mapped when its tables were made and until it
    /// was walked: libraries were unmapped meanwhile, but none of these.
    fn walked_what_was_there(&self, stack: &StackFrames) -> bool {
        let header = &stack.header;
        let Some(target) = self.targets.get(&header.header.target) else { return false };
        stack.frames_avma.iter().all(|return_avma| {
            let call_avma = return_avma.saturating_sub(1);
            let (made_ns, walked_ns) = (header.tables_read_ns, header.header.time_ns);
            target.space.is_unchanged_since(call_avma, made_ns, walked_ns)
        })
    }

    fn frame(&mut self, location: Location, give: &mut impl FnMut(Item)) -> FrameId {
        let next = FrameId(self.frames.len() as u32);
        *self.frames.entry(location).or_insert_with(|| {
            give(Item::Frame(Frame { id: next, location }));
            next
        })
    }

    /// Where a return address points that was on a stack at that time; none if no code was there.
    fn locate(
        &mut self,
        header: &Header,
        process: ProcessId,
        return_avma: u64,
        give: &mut impl FnMut(Item),
    ) -> Option<Location> {
        // The call before it is what is looked up: after a call that never returns,
        // the return address may lie behind the end of the code.
        let call_avma = return_avma.checked_sub(1)?;
        self.look_for(call_avma, header, give);
        let space = &self.targets.get(&header.target)?.space;
        let range = space.range_at(call_avma, header.time_ns)?;
        Some(match &range.module {
            Some(module) => Location::Module {
                module: module.id,
                file_offset: (return_avma - range.start_avma).wrapping_add(range.file_offset),
            },
            None => Location::Unmapped { process, address_avma: return_avma },
        })
    }

    fn look_if_outdated(&mut self, header: &Header, give: &mut impl FnMut(Item)) {
        if self.targets.get(&header.target).is_some_and(|target| target.outdated) {
            self.look(header.target, header.time_ns, give);
        }
    }

    /// Looks at the target of a record if an address is not known to hold code, and says
    /// whether it is known since.
    fn look_for(&mut self, avma: u64, header: &Header, give: &mut impl FnMut(Item)) -> bool {
        let Some(target) = self.targets.get(&header.target) else { return false };
        if target.space.range_at(avma, header.time_ns).is_some()
            || header.time_ns.saturating_sub(target.looked_at_ns) <= LOOK_AGAIN_NS
        {
            return false;
        }
        self.look(header.target, header.time_ns, give);
        let target = self.targets.get(&header.target);
        target.is_some_and(|target| target.space.range_at(avma, header.time_ns).is_some())
    }

    /// Looks at a target and tells what is new.
    fn look(&mut self, index: u16, now_ns: u64, give: &mut impl FnMut(Item)) {
        let Some(target) = self.targets.get_mut(&index) else { return };
        target.looked_at_ns = now_ns;
        target.outdated = false;
        // A process that is gone keeps what was last seen of it.
        if let Some(observation) = self.view.observe(index) {
            self.saw(index, observation, now_ns, give);
        }
    }

    /// Somebody else has looked at a target.
    pub fn saw(
        &mut self,
        target: u16,
        observation: Observation,
        now_ns: u64,
        mut give: impl FnMut(Item),
    ) {
        let Some(state) = self.targets.get_mut(&target) else { return };
        let Observation { comm, exe, code, begun_ns, done_ns } = observation;
        state.looked_at_ns = now_ns;
        for range in &code {
            define_module(&mut self.known_modules, range, &mut give);
        }
        state.space.observe(&code, begun_ns, done_ns);
        if begun_ns < state.image_since_ns || done_ns >= state.space.next_exec_ns() {
            // It shows another image than the one that records speak of now.
            return;
        }
        state.is_unsure = false;
        let before = state.process.clone();
        let process = &mut state.process;
        // Of a process that is exiting its names can no longer be read.
        for (known, found) in [(&mut process.comm, comm), (&mut process.exe, exe)] {
            if !found.is_empty() {
                *known = found;
            }
        }
        for range in &code {
            note_allocator(process, range);
        }
        if *process != before {
            give(Item::Process(process.clone()));
        }
        self.judge(target, &mut give);
    }
}

/// A thread's name, up to its first 0.
fn name_of(comm: &[u8]) -> String {
    let length = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..length).unwrap_or_default()).into_owned()
}

/// What wait(2) gives, as a shell says it: the exit code, or 128 and the signal.
fn status_of(wait_status: u32) -> i32 {
    let (code, signal) = (wait_status >> 8 & 0xff, wait_status & 0x7f);
    (if signal == 0 { code } else { 128 + signal }).cast_signed()
}

/// What the kernel side's reason is called in a recording.
fn outcome_of(outcome: u16) -> StackOutcome {
    match outcome {
        OUTCOME_COMPLETE => StackOutcome::Complete,
        OUTCOME_FRAME_POINTERS_ENDED => StackOutcome::WithFramePointers,
        OUTCOME_FRAME_POINTER_BROKEN => StackOutcome::FramePointerBroken,
        OUTCOME_DEPTH_LIMIT => StackOutcome::DepthLimit,
        OUTCOME_NO_TABLES => StackOutcome::NoTables,
        OUTCOME_UNKNOWN_CODE => StackOutcome::UnknownCode,
        OUTCOME_UNSUPPORTED_RULE => StackOutcome::UnsupportedRule,
        OUTCOME_STACK_UNREADABLE => StackOutcome::StackUnreadable,
        OUTCOME_NOT_UPWARD => StackOutcome::NotUpward,
        OUTCOME_TABLES_REPLACED => StackOutcome::TablesReplaced,
        OUTCOME_NULL_RETURN => StackOutcome::NullReturn,
        OUTCOME_CALLER_ONLY => StackOutcome::CallerOnly,
        _ => StackOutcome::UnknownReason,
    }
}

fn define_module(known: &mut FxHashSet<ModuleId>, range: &CodeRange, give: &mut impl FnMut(Item)) {
    if let Some(module) = &range.module
        && known.insert(module.id)
    {
        give(Item::Module(module.as_ref().clone()));
    }
}

#[cfg(test)]
mod tests;
