use hashbrown::HashMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::sites::{Resident, Site, SiteKey, Sites};
use crate::model::{Event, FreeCaller, ProcessId, ThreadId};

/// Most loss windows kept one by one; further ones are only summed.
const MAX_LOSS_WINDOWS: usize = 4096;

/// Sums over everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks that began.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Blocks that ended by free or reallocation.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Reallocations of an existing block that returned a block.
    pub reallocations: u64,
    /// Calls that returned no block although one was asked for.
    pub failed_allocations: u64,
    /// Begun and not ended when the trace ended, ended processes included.
    pub live_blocks: u64,
    /// Sum of their requested sizes.
    pub live_bytes: u64,
    /// Blocks at the moment of the largest sum of live requested bytes.
    pub peak_live_blocks: u64,
    /// That largest sum.
    pub peak_live_bytes: u64,
    /// `CLOCK_MONOTONIC` of that moment, 0 if nothing was allocated.
    pub peak_time_ns: u64,
    /// Freed by the thread that allocated them, with no other allocation of that
    /// thread in between.
    pub temporary_allocations: u64,
    /// Frees of blocks that are not known: allocated before the trace began, or
    /// their allocation was lost.
    pub unknown_frees: u64,
    /// Calls of free by the allocator itself for blocks already freed; no frees.
    pub allocator_internal_frees: u64,
    /// Blocks whose end was not seen, but whose address was given out again.
    pub unseen_ends: u64,
    /// Sum of their requested sizes.
    pub unseen_end_bytes: u64,
    /// Records lost, as told by markers in the stream.
    pub marked_losses: u64,
}

/// A stretch of time in which records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossWindow {
    /// `CLOCK_MONOTONIC`.
    pub from_ns: u64,
    /// `CLOCK_MONOTONIC`.
    pub until_ns: u64,
    /// How many records.
    pub lost_count: u64,
}

/// A block while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveBlock {
    /// Requested size.
    pub size_bytes: u64,
    /// When it began.
    pub allocated_ns: u64,
    /// When the first block of its chain of reallocations began.
    pub chain_allocated_ns: u64,
    /// Where it began: an index into [`Tracker::sites`].
    pub site: u32,
    /// By which thread.
    pub thread: ThreadId,
    /// The how-manieth allocation of all it was, modulo 2^32.
    ordinal: u32,
}

/// A block that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Whose.
    pub process: ProcessId,
    /// Where it was.
    pub address_avma: u64,
    /// What it was.
    pub block: LiveBlock,
    /// When it ended.
    pub freed_ns: u64,
    /// By which thread; none if its end was not seen.
    pub freed_by: Option<ThreadId>,
}

/// A reallocation that was entered and has not returned.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    old_address_avma: u64,
    /// When the old address was given out again, the block there having moved: it
    /// was closed then, and what lives there now is another block.
    closed: Option<ClosedInFlight>,
}

#[derive(Clone, Copy, Debug)]
struct ClosedInFlight {
    chain_allocated_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    /// Ordinal of its last allocation; none before the first. Ordinals count the
    /// allocations of all threads, so that a thread which gets the number of one
    /// that has ended does not continue its count.
    last_ordinal: Option<u32>,
    /// Frees of unknown blocks by the allocator's own module, with nothing after
    /// them yet: what they are is decided by what comes next.
    pending_internal_frees: u64,
}

#[derive(Debug, Default)]
struct ProcessState {
    live: HashMap<u64, LiveBlock, FxBuildHasher>,
    threads: FxHashMap<ThreadId, Thread>,
    in_flight: FxHashMap<ThreadId, InFlight>,
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Tracker {
    processes: FxHashMap<ProcessId, ProcessState>,
    sites: Sites,
    totals: Totals,
    loss_windows: Vec<LossWindow>,
}

/// Fields that allocation and reallocation share.
#[derive(Clone, Copy)]
struct Begin {
    key: SiteKey,
    thread: ThreadId,
    time_ns: u64,
    address_avma: u64,
    size_bytes: u64,
}

impl Tracker {
    /// A tracker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event; gives the blocks that it ends.
    pub fn apply(&mut self, event: &Event, mut ended: impl FnMut(&Block)) {
        match *event {
            Event::Allocation { process, thread, time_ns, address_avma, size_bytes, stack, .. } => {
                let key = SiteKey { process, stack };
                let begin = Begin { key, thread, time_ns, address_avma, size_bytes };
                self.go_on(process, thread);
                if address_avma == 0 {
                    self.fail(key, time_ns);
                } else {
                    self.begin(begin, None, &mut ended);
                }
            }
            Event::Free { process, thread, time_ns, address_avma, caller } => {
                self.free(process, thread, time_ns, address_avma, caller, &mut ended);
            }
            Event::ReallocationBegin { process, thread, old_address_avma, .. } => {
                self.settle_pending(process, thread);
                let in_flight = InFlight { old_address_avma, closed: None };
                self.process(process).in_flight.insert(thread, in_flight);
            }
            Event::ReallocationEnd {
                process,
                thread,
                time_ns,
                old_address_avma,
                new_address_avma,
                size_bytes,
                stack,
                ..
            } => {
                let key = SiteKey { process, stack };
                let begin =
                    Begin { key, thread, time_ns, address_avma: new_address_avma, size_bytes };
                self.end_reallocation(old_address_avma, begin, &mut ended);
            }
            Event::ThreadExit { process, thread, .. } => {
                let state = self.process(process);
                state.in_flight.remove(&thread);
                if let Some(thread) = state.threads.remove(&thread) {
                    self.totals.allocator_internal_frees += thread.pending_internal_frees;
                }
            }
            Event::Loss { first_lost_ns, time_ns, lost_count } => {
                self.totals.marked_losses = self.totals.marked_losses.wrapping_add(lost_count);
                if self.loss_windows.len() < MAX_LOSS_WINDOWS {
                    self.loss_windows.push(LossWindow {
                        from_ns: first_lost_ns,
                        until_ns: time_ns,
                        lost_count,
                    });
                }
            }
        }
    }

    /// A process image ended: its blocks stay live in the sums, but take no memory.
    pub fn end_process(&mut self, process: ProcessId, time_ns: u64) {
        self.sites.end_process(process, time_ns);
        if let Some(state) = self.processes.get_mut(&process) {
            state.in_flight.clear();
        }
    }

    fn process(&mut self, process: ProcessId) -> &mut ProcessState {
        self.processes.entry(process).or_default()
    }

    /// The thread goes on, so what it freed before was no clearing of its cache, and
    /// a reallocation it was in is over, though the record of its return was lost.
    fn go_on(&mut self, process: ProcessId, thread: ThreadId) {
        self.process(process).in_flight.remove(&thread);
        self.settle_pending(process, thread);
    }

    fn settle_pending(&mut self, process: ProcessId, thread: ThreadId) {
        let thread = self.process(process).threads.entry(thread).or_default();
        let pending = std::mem::take(&mut thread.pending_internal_frees);
        self.totals.unknown_frees += pending;
    }

    fn fail(&mut self, key: SiteKey, time_ns: u64) {
        self.totals.failed_allocations += 1;
        let site = self.sites.index_of(key);
        self.sites.change(site, time_ns, |site| site.sums.failed_allocations += 1);
    }

    /// A block begins. `chain_allocated_ns` is that of the block it continues.
    fn begin(
        &mut self,
        begin: Begin,
        chain_allocated_ns: Option<u64>,
        ended: &mut impl FnMut(&Block),
    ) {
        let Begin { key, thread, time_ns, address_avma, size_bytes } = begin;
        self.displace(key.process, address_avma, thread, time_ns, ended);
        let site = self.sites.index_of(key);
        let state = self.processes.entry(key.process).or_default();
        let ordinal = self.totals.allocations as u32;
        state.threads.entry(thread).or_default().last_ordinal = Some(ordinal);
        let block = LiveBlock {
            size_bytes,
            allocated_ns: time_ns,
            chain_allocated_ns: chain_allocated_ns.unwrap_or(time_ns),
            site,
            thread,
            ordinal,
        };
        state.live.insert(address_avma, block);
        self.totals.allocations += 1;
        self.totals.allocated_bytes = self.totals.allocated_bytes.wrapping_add(size_bytes);
        self.sites.change(site, time_ns, |site| {
            site.sums.allocations += 1;
            site.sums.allocated_bytes = site.sums.allocated_bytes.wrapping_add(size_bytes);
        });
    }

    /// An address is given out while a block is thought to live there: either a
    /// reallocation under way has moved that block, or its end was not seen.
    fn displace(
        &mut self,
        process: ProcessId,
        address_avma: u64,
        by: ThreadId,
        time_ns: u64,
        ended: &mut impl FnMut(&Block),
    ) {
        let state = self.processes.entry(process).or_default();
        let Some(block) = state.live.remove(&address_avma) else { return };
        let mover = state.in_flight.iter_mut().find(|(thread, in_flight)| {
            **thread != by
                && in_flight.old_address_avma == address_avma
                && in_flight.closed.is_none()
        });
        let Some((mover, in_flight)) = mover else {
            self.totals.unseen_ends += 1;
            self.totals.unseen_end_bytes = self.totals.unseen_end_bytes.wrapping_add(block.size_bytes);
            self.sites.change(block.site, time_ns, |site| {
                site.sums.unseen_ends += 1;
                site.sums.unseen_end_bytes = site.sums.unseen_end_bytes.wrapping_add(block.size_bytes);
            });
            ended(&Block { process, address_avma, block, freed_ns: time_ns, freed_by: None });
            return;
        };
        in_flight.closed =
            Some(ClosedInFlight { chain_allocated_ns: block.chain_allocated_ns });
        let mover = *mover;
        self.end(process, address_avma, block, mover, time_ns, ended);
    }

    /// A known block ends.
    fn end(
        &mut self,
        process: ProcessId,
        address_avma: u64,
        block: LiveBlock,
        by: ThreadId,
        time_ns: u64,
        ended: &mut impl FnMut(&Block),
    ) {
        let state = self.processes.entry(process).or_default();
        let last_ordinal = state.threads.get(&by).and_then(|thread| thread.last_ordinal);
        let temporary = by == block.thread && last_ordinal == Some(block.ordinal);
        self.totals.frees += 1;
        self.totals.freed_bytes = self.totals.freed_bytes.wrapping_add(block.size_bytes);
        self.totals.temporary_allocations += u64::from(temporary);
        self.sites.change(block.site, time_ns, |site| {
            site.sums.frees += 1;
            site.sums.freed_bytes = site.sums.freed_bytes.wrapping_add(block.size_bytes);
            site.sums.temporary_allocations += u64::from(temporary);
            site.lifetimes.add(time_ns.saturating_sub(block.allocated_ns));
        });
        ended(&Block { process, address_avma, block, freed_ns: time_ns, freed_by: Some(by) });
    }

    fn free(
        &mut self,
        process: ProcessId,
        thread: ThreadId,
        time_ns: u64,
        address_avma: u64,
        caller: FreeCaller,
        ended: &mut impl FnMut(&Block),
    ) {
        let state = self.process(process);
        let Some(block) = state.live.remove(&address_avma) else {
            match caller {
                FreeCaller::Program => {
                    self.go_on(process, thread);
                    self.totals.unknown_frees += 1;
                }
                FreeCaller::AllocatorModule => {
                    state.threads.entry(thread).or_default().pending_internal_frees += 1;
                }
            }
            return;
        };
        self.go_on(process, thread);
        self.end(process, address_avma, block, thread, time_ns, ended);
    }

    fn end_reallocation(
        &mut self,
        old_address_avma: u64,
        begin: Begin,
        ended: &mut impl FnMut(&Block),
    ) {
        let Begin { key, thread, time_ns, address_avma: new_address_avma, size_bytes } = begin;
        self.settle_pending(key.process, thread);
        let in_flight = self.process(key.process).in_flight.remove(&thread);
        let closed = in_flight
            .filter(|in_flight| in_flight.old_address_avma == old_address_avma)
            .and_then(|in_flight| in_flight.closed);
        if new_address_avma == 0 && size_bytes != 0 {
            self.fail(key, time_ns);
            return;
        }
        let chain_allocated_ns = match closed {
            Some(closed) => Some(closed.chain_allocated_ns),
            None => match self.process(key.process).live.remove(&old_address_avma) {
                Some(block) => {
                    self.end(key.process, old_address_avma, block, thread, time_ns, ended);
                    Some(block.chain_allocated_ns)
                }
                None => {
                    self.totals.unknown_frees += 1;
                    None
                }
            },
        };
        if new_address_avma != 0 {
            self.totals.reallocations += 1;
            self.begin(begin, chain_allocated_ns, ended);
        }
    }

    /// Sums so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (peak, peak_time_ns) = self.sites.peak();
        let totals = self.totals;
        let pending: u64 = self
            .processes
            .values()
            .flat_map(|state| state.threads.values())
            .map(|thread| thread.pending_internal_frees)
            .sum();
        Totals {
            live_blocks: totals.allocations - totals.frees - totals.unseen_ends,
            live_bytes: totals
                .allocated_bytes
                .wrapping_sub(totals.freed_bytes)
                .wrapping_sub(totals.unseen_end_bytes),
            peak_live_blocks: peak.blocks,
            peak_live_bytes: peak.bytes,
            peak_time_ns,
            unknown_frees: totals.unknown_frees + pending,
            ..totals
        }
    }

    /// What takes memory now: live blocks of processes that have not ended.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let Resident { bytes, .. } = self.sites.resident();
        bytes
    }

    /// All sites, in the order in which they were first seen.
    #[must_use]
    pub fn sites(&self) -> Vec<Site> {
        self.sites.snapshot()
    }

    /// The stretches in which records are missing, at most the first few thousand.
    #[must_use]
    pub fn loss_windows(&self) -> &[LossWindow] {
        &self.loss_windows
    }

    /// The live blocks of all processes with their addresses, in no order.
    pub fn live_blocks(&self) -> impl Iterator<Item = (ProcessId, u64, &LiveBlock)> {
        self.processes.iter().flat_map(|(process, state)| {
            state.live.iter().map(|(address_avma, block)| (*process, *address_avma, block))
        })
    }

    /// Which site an index in a block means.
    #[must_use]
    pub fn site_key(&self, site: u32) -> Option<SiteKey> {
        self.sites.key(site)
    }
}
