use std::hash::BuildHasher as _;

use hashbrown::{HashSet, hash_table::Entry};
use rustc_hash::FxBuildHasher;

use super::{
    Weight,
    block::{Block, LiveBlock, LossWindow, Totals},
    faults::{FaultSite, FaultSums, Faults},
    live::{LiveBlocks, ordinal_of},
    mappings::{MappingSite, MappingTotals, Mappings},
    mismatches::{Mismatch, Mismatches},
    sampled::weight_of,
    sites::{Resident, Site, SiteKey, SiteSums, Sites},
    state::{Actors, Begin, By, ClosedInFlight, InFlight},
    threads::{EndedThreads, ThreadRecord},
    windows::Windows,
};
use crate::model::{
    AllocatedSince, AllocatorCall, CountedAllocations, Event, Fork, FreeCaller, ProbeId,
    ProbeOwner, ProcessId, ThreadId, Window,
};

/// Most loss windows kept one by one; further ones are only summed.
const MAX_LOSS_WINDOWS: usize = 4096;

/// The state machine.
#[derive(Debug, Default)]
pub struct Tracker {
    actors: Actors,
    ended_threads: EndedThreads,
    blocks: LiveBlocks,
    sites: Sites,
    totals: Totals,
    /// Blocks that began, whatever they count for.
    begun: u64,
    loss_windows: Vec<LossWindow>,
    windows: Windows,
    faults: Faults,
    mappings: Mappings,
    mismatches: Mismatches,
}

fn hash_of(address_avma: u64) -> u64 {
    FxBuildHasher.hash_one(address_avma)
}

/// Sums wrap, see [`super::SiteSums`].
fn add(sum: &mut u64, number: u64) {
    *sum = sum.wrapping_add(number);
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
            Event::Free { process, thread, time_ns, address_avma, probe, caller } => {
                let by = self.actors.by(process, thread);
                self.judge(by, time_ns, address_avma, probe);
                self.free(by, time_ns, address_avma, caller, ended);
            }
            Event::ReallocationBegin { process, thread, time_ns, old_address_avma, probe } => {
                let by = self.actors.by(process, thread);
                self.judge(by, time_ns, old_address_avma, probe);
                self.settle_pending(by);
                let in_flight = InFlight { old_address_avma, closed: None };
                self.actors.processes[by.process_index].in_flight.insert(thread, in_flight);
            }
            Event::ThreadExit { process, thread, .. } => self.end_thread(process, thread),
            Event::Loss { first_lost_ns, time_ns, lost_count } => {
                self.mismatches.lose(first_lost_ns, time_ns);
                self.totals.marked_losses = self.totals.marked_losses.saturating_add(lost_count);
                if self.loss_windows.len() < MAX_LOSS_WINDOWS {
                    let (from_ns, until_ns) = (first_lost_ns, time_ns);
                    self.loss_windows.push(LossWindow { from_ns, until_ns, lost_count });
                }
            }
            Event::PageFault { process, stack, resident, is_major, .. } => {
                self.faults.count(SiteKey { process, stack }, resident, is_major);
            }
            Event::Mapping { .. } | Event::Unmapping { .. } | Event::Remapping { .. } => {
                self.mappings.apply(event);
            }
        }
    }

    /// The events that can give a block.
    fn begin_or_move(&mut self, event: &Event, ended: &mut impl FnMut(&Block)) {
        match *event {
            Event::Allocation {
                process,
                thread,
                time_ns,
                address_avma,
                size_bytes,
                stack,
                probe,
                interval_bytes,
            } => {
                let (by, key) = (self.actors.by(process, thread), SiteKey { process, stack });
                let begin =
                    Begin { by, key, time_ns, address_avma, size_bytes, interval_bytes, probe };
                self.go_on(by);
                if address_avma == 0 {
                    self.fail(&begin);
                } else {
                    self.begin(&begin, None, ended);
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
                probe,
                interval_bytes,
            } => {
                let (by, key) = (self.actors.by(process, thread), SiteKey { process, stack });
                let begin =
                    Begin { by, key, time_ns, address_avma, size_bytes, interval_bytes, probe };
                self.end_reallocation(old_address_avma, &begin, ended);
            }
            _ => {}
        }
    }

    /// What the thread freed last, and nobody knew, was its cache being cleared.
    fn end_thread(&mut self, process: ProcessId, thread: ThreadId) {
        if let Some(known) = self.actors.end_thread(process, thread) {
            self.totals.allocator_internal_frees += known.pending_internal_frees;
            self.ended_threads.add(process, thread, known.sums);
        }
    }

    /// A process image ended: its blocks stay live in the sums, but take no memory.
    pub fn end_process(&mut self, process: ProcessId) {
        self.sites.end_process(process);
        self.mappings.end_process(process);
        if let Some(state) = self.actors.process_mut(process) {
            state.has_ended = true;
            state.in_flight.clear();
            state.inherited = HashSet::default();
        }
    }

    /// A process begins as the copy of another one. It inherits what is live there, which is
    /// nobody's second allocation.
    pub fn fork(&mut self, fork: &Fork) {
        self.mappings.fork(fork.process, fork.parent);
        let (child, parent) =
            (self.actors.process_index(fork.process), self.actors.process_index(fork.parent));
        let Some(of) = self.actors.processes.get(parent) else { return };
        let addresses = of.live.iter().map(|place| self.blocks.address_avma(*place));
        let inherited = addresses.chain(of.inherited.iter().copied()).collect();
        if let Some(state) = self.actors.processes.get_mut(child) {
            state.inherited = inherited;
        }
    }

    /// Whether a block that is not its own was inherited by a process; it has it no more.
    #[inline]
    fn end_inherited(&mut self, by: By, address_avma: u64) -> bool {
        let inherited = &mut self.actors.processes[by.process_index].inherited;
        let was_inherited = !inherited.is_empty() && inherited.remove(&address_avma);
        self.totals.inherited_frees += u64::from(was_inherited);
        was_inherited
    }

    /// The thread goes on, so a reallocation it was in is over: its return was lost.
    #[inline]
    fn go_on(&mut self, by: By) {
        let in_flight = &mut self.actors.processes[by.process_index].in_flight;
        if !in_flight.is_empty() {
            in_flight.remove(&by.thread);
        }
        self.settle_pending(by);
    }

    /// What the thread freed before was no clearing of its cache, as it goes on.
    #[inline]
    fn settle_pending(&mut self, by: By) {
        let pending = &mut self.actors.threads[by.thread_index].pending_internal_frees;
        self.totals.unknown_frees += std::mem::take(pending);
    }

    /// Allocations of which only the sum is known. They count as begun, and as ended unseen:
    /// they are never called live.
    pub fn counted(&mut self, counted: &CountedAllocations) {
        let weight = Weight { blocks: counted.allocations, bytes: counted.bytes };
        for (blocks, bytes) in [
            (&mut self.totals.allocations, &mut self.totals.allocated_bytes),
            (&mut self.totals.unseen_ends, &mut self.totals.unseen_end_bytes),
        ] {
            add(blocks, weight.blocks);
            add(bytes, weight.bytes);
        }
        self.totals.counted_allocations =
            self.totals.counted_allocations.wrapping_add(weight.blocks);
        let key = SiteKey { process: counted.process, stack: counted.stack };
        let site = self.sites.index_of(key);
        self.sites.count(site, weight);
    }

    /// A window ends in which the targets were observed; gives the blocks that are lost sight of.
    pub fn end_window(&mut self, window: &Window, mut ended: impl FnMut(&Block)) {
        self.windows.add(window, &self.totals);
        self.sites.end_window(window);
        if window.is_last {
            return;
        }
        let blocks = &mut self.blocks;
        for state in self.actors.processes.iter_mut().filter(|state| !state.has_ended) {
            for place in state.live.drain() {
                let address_avma = blocks.address_avma(place);
                let block = blocks.take(place);
                blocks.release(place);
                state.resident.subtract(block.weight);
                add(&mut self.totals.unseen_ends, block.weight.blocks);
                add(&mut self.totals.unseen_end_bytes, block.weight.bytes);
                self.sites.end_unseen(&block);
                let (process, freed_ns) = (state.id, window.end_ns);
                ended(&Block { process, address_avma, block, freed_ns, freed_by: None });
            }
            state.in_flight.clear();
        }
    }

    fn fail(&mut self, begin: &Begin) {
        // Calls that fail are rare, so none is carried over.
        let calls = weight_of(begin.size_bytes, begin.interval_bytes).round() as u64;
        add(&mut self.totals.failed_allocations, calls);
        self.actors.threads[begin.by.thread_index].sums.fail(calls);
        let site = self.sites.index_of(begin.key);
        self.sites.fail(site, calls);
    }

    /// A block begins. `chain_allocated_ns` is that of the block it continues. Gives for how
    /// many it counts.
    fn begin(
        &mut self,
        begin: &Begin,
        chain_allocated_ns: Option<u64>,
        ended: &mut impl FnMut(&Block),
    ) -> u64 {
        let Begin { by, key, time_ns, address_avma, size_bytes, interval_bytes, probe } = *begin;
        let (blocks, process) = (&self.blocks, &mut self.actors.processes[by.process_index]);
        if !process.inherited.is_empty() {
            // Given out again: its end was not seen.
            process.inherited.remove(&address_avma);
        }
        let entry = process.live.entry(
            hash_of(address_avma),
            |place| blocks.address_avma(*place) == address_avma,
            |place| hash_of(blocks.address_avma(*place)),
        );
        let place = match entry {
            Entry::Vacant(entry) => *entry.insert(self.blocks.reserve()).get(),
            Entry::Occupied(entry) => {
                let place = *entry.get();
                self.displace(by, place, time_ns, ended);
                place
            }
        };
        let site = self.sites.index_of(key);
        let first_probe = self.sites.first_probe(site, probe);
        let ordinal = ordinal_of(self.begun);
        self.begun += 1;
        let weight = self.sites.draw(site, size_bytes, interval_bytes);
        let thread = &mut self.actors.threads[by.thread_index];
        thread.last_ordinal = Some(ordinal);
        thread.sums.begin(weight);
        let block = LiveBlock {
            size_bytes,
            allocated_ns: time_ns,
            chain_allocated_ns: chain_allocated_ns.unwrap_or(time_ns),
            site,
            thread: by.thread,
            weight,
            interval_bytes,
            other_probe: Some(probe).filter(|probe| *probe != first_probe),
            ordinal,
        };
        self.blocks.put(place, address_avma, &block);
        self.actors.processes[by.process_index].resident.add(weight);
        add(&mut self.totals.allocations, weight.blocks);
        add(&mut self.totals.allocated_bytes, weight.bytes);
        self.sites.begin(site, time_ns, weight);
        weight.blocks
    }

    /// An address is given out while a block is thought to live there: either a
    /// reallocation under way has moved that block, or its end was not seen.
    #[cold]
    fn displace(&mut self, by: By, place: u32, time_ns: u64, ended: &mut impl FnMut(&Block)) {
        let address_avma = self.blocks.address_avma(place);
        let block = self.blocks.take(place);
        let process = &mut self.actors.processes[by.process_index];
        process.resident.subtract(block.weight);
        let mover = process.in_flight.iter_mut().find(|(thread, in_flight)| {
            **thread != by.thread
                && in_flight.old_address_avma == address_avma
                && in_flight.closed.is_none()
        });
        let Some((mover, in_flight)) = mover else {
            add(&mut self.totals.unseen_ends, block.weight.blocks);
            add(&mut self.totals.unseen_end_bytes, block.weight.bytes);
            self.sites.end_unseen(&block);
            let process = by.process;
            ended(&Block { process, address_avma, block, freed_ns: time_ns, freed_by: None });
            return;
        };
        in_flight.closed = Some(ClosedInFlight { chain_allocated_ns: block.chain_allocated_ns });
        let mover = *mover;
        let thread_index = process.threads.get(&mover).map_or(usize::MAX, |index| *index as usize);
        let mover = By { thread: mover, thread_index, ..by };
        self.end(mover, address_avma, block, time_ns, ended);
    }

    /// A known block ends, which is no longer among the live ones.
    fn end(
        &mut self,
        by: By,
        address_avma: u64,
        block: LiveBlock,
        time_ns: u64,
        ended: &mut impl FnMut(&Block),
    ) {
        let thread = self.actors.threads.get_mut(by.thread_index);
        let last_ordinal = thread.as_ref().and_then(|thread| thread.last_ordinal);
        let temporary = by.thread == block.thread && last_ordinal == Some(block.ordinal);
        let sums = thread.map_or_else(|| self.ended_threads.others(), |thread| &mut thread.sums);
        sums.end(block.weight, temporary);
        add(&mut self.totals.frees, block.weight.blocks);
        add(&mut self.totals.freed_bytes, block.weight.bytes);
        if temporary {
            add(&mut self.totals.temporary_allocations, block.weight.blocks);
        }
        self.sites.end(&block, time_ns, temporary);
        let (process, freed_by) = (by.process, Some(by.thread));
        ended(&Block { process, address_avma, block, freed_ns: time_ns, freed_by });
    }

    /// A function was given an address to be freed or reallocated: if a block lives there that
    /// another allocator gave, this is noted.
    #[inline]
    fn judge(&mut self, by: By, time_ns: u64, address_avma: u64, probe: Option<ProbeId>) {
        if !self.mismatches.may_be() {
            return;
        }
        let (blocks, process) = (&self.blocks, &self.actors.processes[by.process_index]);
        let found = process
            .live
            .find(hash_of(address_avma), |place| blocks.address_avma(*place) == address_avma);
        let block = found.map(|place| blocks.get(*place));
        if let Some((block, probe)) = block.zip(probe)
            && let Some(given_by) = self.sites.probe_of(&block)
        {
            self.mismatches.judge(&block, given_by, probe, time_ns);
        }
    }

    /// A thread has allocated blocks that are not recorded.
    pub fn allocated_since(&mut self, since: &AllocatedSince) {
        let by = self.actors.by(since.process, since.thread);
        self.actors.threads[by.thread_index].last_ordinal = None;
    }

    /// Says whose a probed function is.
    pub fn owner(&mut self, owner: &ProbeOwner) {
        self.mismatches.define(owner);
    }

    /// A function of one allocator has called one of another.
    pub fn allocator_call(&mut self, call: &AllocatorCall) {
        self.mismatches.called(call);
    }

    /// What became of blocks cannot be told for certain, as parts of the recording are missing.
    pub fn distrust(&mut self) {
        self.mismatches.distrust();
    }

    /// Blocks that were given to another allocator than their own to be freed or reallocated, as
    /// far as that is known.
    #[must_use]
    pub fn mismatches(&self) -> Vec<Mismatch> {
        self.mismatches.certain()
    }

    /// Takes a live block out.
    #[inline]
    fn remove(&mut self, by: By, address_avma: u64) -> Option<LiveBlock> {
        let (blocks, process) = (&self.blocks, &mut self.actors.processes[by.process_index]);
        let found = process
            .live
            .find_entry(hash_of(address_avma), |place| blocks.address_avma(*place) == address_avma);
        let (place, _) = found.ok()?.remove();
        let block = self.blocks.take(place);
        process.resident.subtract(block.weight);
        self.blocks.release(place);
        Some(block)
    }

    fn free(
        &mut self,
        by: By,
        time_ns: u64,
        address_avma: u64,
        caller: FreeCaller,
        ended: &mut impl FnMut(&Block),
    ) {
        let Some(block) = self.remove(by, address_avma) else {
            match caller {
                _ if self.end_inherited(by, address_avma) => self.go_on(by),
                FreeCaller::Program => {
                    self.go_on(by);
                    self.totals.unknown_frees += 1;
                }
                FreeCaller::AllocatorModule => {
                    self.actors.threads[by.thread_index].pending_internal_frees += 1;
                }
            }
            return;
        };
        self.go_on(by);
        self.end(by, address_avma, block, time_ns, ended);
    }

    fn end_reallocation(
        &mut self,
        old_address_avma: u64,
        begin: &Begin,
        ended: &mut impl FnMut(&Block),
    ) {
        let Begin { by, time_ns, address_avma: new_address_avma, size_bytes, .. } = *begin;
        self.settle_pending(by);
        let in_flight = self.actors.processes[by.process_index].in_flight.remove(&by.thread);
        let closed = in_flight
            .filter(|in_flight| in_flight.old_address_avma == old_address_avma)
            .and_then(|in_flight| in_flight.closed);
        if new_address_avma == 0 && size_bytes != 0 {
            self.fail(begin);
            return;
        }
        let chain_allocated_ns = match closed {
            Some(closed) => Some(closed.chain_allocated_ns),
            None => match self.remove(by, old_address_avma) {
                Some(block) => {
                    self.end(by, old_address_avma, block, time_ns, ended);
                    Some(block.chain_allocated_ns)
                }
                None => {
                    // With sampling it was mostly a block that was not drawn.
                    let is_known =
                        self.end_inherited(by, old_address_avma) || begin.interval_bytes != 0;
                    self.totals.unknown_frees += u64::from(!is_known);
                    None
                }
            },
        };
        if new_address_avma != 0 {
            let blocks = self.begin(begin, chain_allocated_ns, ended);
            add(&mut self.totals.reallocations, blocks);
        }
    }

    /// Sums so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (peak, peak_time_ns) = self.sites.peak();
        let totals = self.totals;
        let threads = self.actors.threads.iter();
        let pending: u64 = threads.map(|thread| thread.pending_internal_frees).sum();
        Totals {
            live_blocks: totals
                .allocations
                .wrapping_sub(totals.frees)
                .wrapping_sub(totals.unseen_ends),
            live_bytes: totals
                .allocated_bytes
                .wrapping_sub(totals.freed_bytes)
                .wrapping_sub(totals.unseen_end_bytes),
            peak_live_blocks: peak.blocks,
            peak_live_bytes: peak.bytes,
            peak_time_ns,
            unknown_frees: totals.unknown_frees + pending,
            mismatched_frees: self.mismatches.certain().iter().map(|found| found.frees).sum(),
            ..totals
        }
    }

    /// What takes memory now: live blocks of processes that have not ended.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.sites.resident().bytes
    }

    /// What is live in a process now, or was when it ended.
    #[must_use]
    pub fn live_of(&self, process: ProcessId) -> Resident {
        self.actors.process(process).map_or(Resident::default(), |state| state.resident)
    }

    /// All sites, in the order in which they were first seen.
    #[must_use]
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = self.sites.snapshot();
        for block in self.blocks.sampled() {
            let site = sites.get_mut(block.site as usize);
            if let Some(sampled) = site.and_then(|site| site.sampled.as_mut()) {
                sampled.add_live(block.size_bytes, block.interval_bytes);
            }
        }
        for found in self.mismatches.certain() {
            if let Some(site) = sites.get_mut(found.site as usize) {
                add(&mut site.sums.mismatched_frees, found.frees);
            }
        }
        sites
    }

    /// What each thread has done, scaled as [`Self::scaled`] is.
    #[must_use]
    pub fn threads(&self) -> Vec<ThreadRecord> {
        let running = self.actors.processes.iter().flat_map(|process| {
            let threads = process.threads.iter();
            threads.filter_map(|(thread, index)| {
                let known = self.actors.threads.get(*index as usize)?;
                Some((process.id, *thread, known.sums))
            })
        });
        let live = self.live_blocks();
        let live = live.map(|(process, _, block)| (process, block.thread, block.weight));
        let mut threads = self.ended_threads.with(running, live);
        if self.windows.has_gaps() {
            let scale = self.windows.scale();
            threads.iter_mut().for_each(|record| record.sums = record.sums.scaled(scale));
        }
        threads
    }

    /// Page faults by site, in the order in which these were first seen.
    #[must_use]
    pub fn fault_sites(&self) -> &[FaultSite] {
        self.faults.sites()
    }

    /// All page faults together.
    #[must_use]
    pub fn fault_totals(&self) -> FaultSums {
        self.faults.totals()
    }

    /// What was mapped by system calls, by site, in the order in which these were first seen.
    #[must_use]
    pub fn mapping_sites(&self) -> &[MappingSite] {
        self.mappings.sites()
    }

    /// All that was mapped by system calls.
    #[must_use]
    pub fn mapping_totals(&self) -> MappingTotals {
        self.mappings.totals()
    }

    /// The stretches in which records are missing, at most the first few thousand.
    #[must_use]
    pub fn loss_windows(&self) -> &[LossWindow] {
        &self.loss_windows
    }

    /// The windows in which the targets were observed; none if it was all the time.
    #[must_use]
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// All sites and the sums over everything, scaled by the windows in which the targets were
    /// observed.
    #[must_use]
    pub fn scaled(&self) -> (Vec<Site>, Totals) {
        let (mut sites, mut totals) = (self.sites(), self.totals());
        if self.windows.has_gaps() {
            let scale = self.windows.scale();
            for site in &mut sites {
                site.sums = site.sums.scaled(scale);
            }
            let all = SiteSums::of_all(&sites);
            totals = Totals {
                allocations: all.allocations,
                allocated_bytes: all.allocated_bytes,
                frees: all.frees,
                freed_bytes: all.freed_bytes,
                temporary_allocations: all.temporary_allocations,
                failed_allocations: all.failed_allocations,
                unseen_ends: all.unseen_ends,
                unseen_end_bytes: all.unseen_end_bytes,
                reallocations: (totals.reallocations as f64 * scale) as u64,
                ..totals
            };
        }
        (sites, totals)
    }

    /// The live blocks of all processes with their addresses, in no order.
    pub fn live_blocks(&self) -> impl Iterator<Item = (ProcessId, u64, LiveBlock)> {
        self.actors.processes.iter().flat_map(|state| {
            state
                .live
                .iter()
                .map(|place| (state.id, self.blocks.address_avma(*place), self.blocks.get(*place)))
        })
    }

    /// How much memory all this takes. It grows with live blocks, sites and threads, and not
    /// with events.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.blocks.held_bytes()
            + self.actors.held_bytes()
            + self.ended_threads.held_bytes()
            + self.sites.held_bytes()
            + self.faults.held_bytes()
            + self.mappings.held_bytes()
            + self.mismatches.held_bytes()
            + self.loss_windows.capacity() * size_of::<LossWindow>()
            + self.windows.list.capacity() * size_of::<Window>()
    }

    /// Which site an index in a block means.
    #[must_use]
    pub fn site_key(&self, site: u32) -> Option<SiteKey> {
        self.sites.key(site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StackId;

    fn allocation(number: u64, address_avma: u64) -> Event {
        Event::Allocation {
            process: ProcessId(1),
            thread: ThreadId(number as u32 % 8),
            time_ns: number,
            address_avma,
            size_bytes: 32,
            stack: StackId(number as u32 % 100),
            probe: ProbeId(0),
            interval_bytes: 0,
        }
    }

    fn free(number: u64, address_avma: u64) -> Event {
        Event::Free {
            process: ProcessId(1),
            thread: ThreadId(number as u32 % 8),
            time_ns: number,
            address_avma,
            probe: Some(ProbeId(1)),
            caller: FreeCaller::Program,
        }
    }

    /// While a table grows, the old one is there beside the new one.
    #[test]
    fn a_live_block_takes_64_bytes_at_most_at_any_time() {
        const SITES_BYTES: usize = 1 << 18;
        let mut tracker = Tracker::new();
        let table_bytes = |tracker: &Tracker| {
            tracker.actors.processes.first().map_or(0, |process| process.live.allocation_size())
        };
        let (mut most, mut before) = (0, 0);
        for number in 1..=300_000 {
            tracker.apply(&allocation(number, 16 * number), |_| {});
            let now = table_bytes(&tracker);
            if now != before || number % 4096 == 0 {
                let old = if now == before { 0 } else { before };
                let held = tracker.held_bytes() + old - SITES_BYTES.min(tracker.held_bytes());
                most = most.max(held as u64 * 10 / number);
                before = now;
            }
        }
        println!("at most {}.{} bytes per live block", most / 10, most % 10);
        assert!((400..=640).contains(&most), "{most} tenths of a byte");
    }

    #[test]
    fn memory_does_not_grow_with_events() {
        const LIVE: u64 = 20_000;
        let mut tracker = Tracker::new();
        let mut held = Vec::new();
        for number in 0..1_000_000 {
            // Each block lives until as many others have begun as are live.
            if number >= LIVE {
                tracker.apply(&free(number, 16 * (number - LIVE + 1)), |_| {});
            }
            tracker.apply(&allocation(number, 16 * (number + 1)), |_| {});
            if (number + 1) % 250_000 == 0 {
                held.push(tracker.held_bytes());
            }
        }
        assert_eq!(tracker.live_blocks().count() as u64, LIVE);
        println!("{held:?} bytes held after each half million events");
        assert!(held.iter().all(|bytes| *bytes == held[0]), "{held:?}");
    }
}
