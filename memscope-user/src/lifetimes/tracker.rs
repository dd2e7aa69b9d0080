use rustc_hash::FxHashMap;

use super::{
    block::{Block, LiveBlock, LossWindow, Totals},
    sites::{Site, SiteKey, Sites},
    state::{Begin, ClosedInFlight, InFlight, ProcessState},
};
use crate::model::{Event, FreeCaller, ProcessId, ThreadId};

/// Most loss windows kept one by one; further ones are only summed.
const MAX_LOSS_WINDOWS: usize = 4096;

/// The state machine.
#[derive(Debug, Default)]
pub struct Tracker {
    processes: FxHashMap<ProcessId, ProcessState>,
    sites: Sites,
    totals: Totals,
    loss_windows: Vec<LossWindow>,
}

impl Tracker {
    /// A tracker that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event; gives the blocks that it ends.
    pub fn apply(&mut self, event: &Event, mut ended: impl FnMut(&Block)) {
        let ended = &mut ended;
        match *event {
            Event::Allocation { .. } | Event::ReallocationEnd { .. } => {
                self.begin_or_move(event, ended)
            }
            Event::Free { process, thread, time_ns, address_avma, caller } => {
                self.free(process, thread, time_ns, address_avma, caller, ended);
            }
            Event::ReallocationBegin { process, thread, old_address_avma, .. } => {
                self.settle_pending(process, thread);
                let in_flight = InFlight { old_address_avma, closed: None };
                self.process(process).in_flight.insert(thread, in_flight);
            }
            Event::ThreadExit { process, thread, .. } => self.end_thread(process, thread),
            Event::Loss { first_lost_ns, time_ns, lost_count } => {
                self.totals.marked_losses = self.totals.marked_losses.saturating_add(lost_count);
                if self.loss_windows.len() < MAX_LOSS_WINDOWS {
                    let (from_ns, until_ns) = (first_lost_ns, time_ns);
                    self.loss_windows.push(LossWindow { from_ns, until_ns, lost_count });
                }
            }
        }
    }

    /// The events that can give a block.
    fn begin_or_move(&mut self, event: &Event, ended: &mut impl FnMut(&Block)) {
        match *event {
            Event::Allocation {
                process, thread, time_ns, address_avma, size_bytes, stack, ..
            } => {
                let key = SiteKey { process, stack };
                self.go_on(process, thread);
                if address_avma == 0 {
                    self.fail(key, time_ns);
                } else {
                    self.begin(
                        Begin { key, thread, time_ns, address_avma, size_bytes },
                        None,
                        ended,
                    );
                }
            }
            Event::ReallocationEnd {
                process,
                thread,
                time_ns,
                old_address_avma,
                new_address_avma: address_avma,
                size_bytes,
                stack,
                ..
            } => {
                let key = SiteKey { process, stack };
                let begin = Begin { key, thread, time_ns, address_avma, size_bytes };
                self.end_reallocation(old_address_avma, begin, ended);
            }
            _ => {}
        }
    }

    /// What the thread freed last, and nobody knew, was its cache being cleared.
    fn end_thread(&mut self, process: ProcessId, thread: ThreadId) {
        let state = self.process(process);
        state.in_flight.remove(&thread);
        if let Some(thread) = state.threads.remove(&thread) {
            self.totals.allocator_internal_frees += thread.pending_internal_frees;
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

    /// The thread goes on, so a reallocation it was in is over: its return was lost.
    fn go_on(&mut self, process: ProcessId, thread: ThreadId) {
        self.process(process).in_flight.remove(&thread);
        self.settle_pending(process, thread);
    }

    /// What the thread freed before was no clearing of its cache, as it goes on.
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
        let Some(block) = state.live.remove(&address_avma) else {
            return;
        };
        let mover = state.in_flight.iter_mut().find(|(thread, in_flight)| {
            **thread != by
                && in_flight.old_address_avma == address_avma
                && in_flight.closed.is_none()
        });
        let Some((mover, in_flight)) = mover else {
            self.totals.unseen_ends += 1;
            self.totals.unseen_end_bytes =
                self.totals.unseen_end_bytes.wrapping_add(block.size_bytes);
            self.sites.change(block.site, time_ns, |site| {
                site.sums.unseen_ends += 1;
                site.sums.unseen_end_bytes =
                    site.sums.unseen_end_bytes.wrapping_add(block.size_bytes);
            });
            ended(&Block { process, address_avma, block, freed_ns: time_ns, freed_by: None });
            return;
        };
        in_flight.closed = Some(ClosedInFlight { chain_allocated_ns: block.chain_allocated_ns });
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
        self.sites.resident().bytes
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
