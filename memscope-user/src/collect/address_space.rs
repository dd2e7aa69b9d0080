//! Which file an address of a process belongs to, and when.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::decode::CopiedStack;
use crate::model::{Module, StackOutcome};

/// Most ranges kept of what a process has unmapped or replaced; the oldest are forgotten.
const MAX_ENDED_RANGES: usize = 4096;
/// Most ranges held to be mapped: more than the kernel allows by default
/// (`vm.max_map_count`, 65,530). Unmapping is not told, so a process that maps and unmaps at
/// ever new addresses would let them grow until it is looked at.
const MAX_LIVE_RANGES: usize = 1 << 16;
/// Most of the kernel's reports kept of a process; the oldest are forgotten.
const MAX_TOLD: usize = 4096;
/// Most execs known from the kernel before their records have come through the ring.
const MAX_PENDING_EXECS: usize = 1024;

/// Executable memory of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeRange {
    /// First address.
    pub start_avma: u64,
    /// First address after it.
    pub end_avma: u64,
    /// Position in the file of the first byte.
    pub file_offset: u64,
    /// The file; none for memory without one.
    pub module: Option<Arc<Module>>,
    /// What the file has.
    pub content: Content,
}

/// What is known of a file that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Allocator functions that are probed, or will be.
    Allocator,
    /// None of them; or there is no file.
    NoAllocator,
    /// It could not be looked into.
    Unknown,
}

/// Some executable memory while it was mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use<'space> {
    pub(super) range: &'space CodeRange,
    /// It was not mapped before.
    pub(super) earliest_ns: u64,
    /// First moment of which it is known to be mapped.
    pub(super) seen_ns: u64,
    /// From then on it is known not to be mapped.
    pub(super) until_ns: u64,
}

impl CodeRange {
    /// Whether blocks come from it.
    pub fn is_allocator(&self) -> bool {
        self.content == Content::Allocator
    }

    /// Whether both say the same of an address that lies in both.
    fn agrees_with(&self, other: &CodeRange) -> bool {
        match (&self.module, &other.module) {
            (Some(one), Some(another)) => {
                one.id == another.id
                    && self.file_offset.wrapping_sub(self.start_avma)
                        == other.file_offset.wrapping_sub(other.start_avma)
            }
            (None, None) => true,
            _ => false,
        }
    }

    fn part(&self, (start_avma, end_avma): (u64, u64)) -> CodeRange {
        let file_offset = self.file_offset.wrapping_add(start_avma.saturating_sub(self.start_avma));
        CodeRange { start_avma, end_avma, file_offset, ..self.clone() }
    }

    fn overlap(&self, other: &CodeRange) -> Option<(u64, u64)> {
        let (start, end) =
            (self.start_avma.max(other.start_avma), self.end_avma.min(other.end_avma));
        (start < end).then_some((start, end))
    }

    fn holds(&self, avma: u64) -> bool {
        (self.start_avma..self.end_avma).contains(&avma)
    }
}

/// What a process looks like at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Name of its main thread.
    pub comm: String,
    /// Path of its executable.
    pub exe: String,
    /// Its executable memory, in the order of addresses.
    pub code: Vec<CodeRange>,
    /// `CLOCK_MONOTONIC` before the memory was looked at: what was mapped then and since is in
    /// `code`, unless it was unmapped before `done_ns`.
    pub begun_ns: u64,
    /// `CLOCK_MONOTONIC` when it had been looked at.
    pub done_ns: u64,
}

/// Looks at the traced processes on behalf of the collector.
pub trait ProcessView {
    /// What a target looks like now; none if it is gone or cannot be looked at.
    fn observe(&mut self, target: u16) -> Option<Observation>;

    /// When a target started, in clock ticks since boot, if that is known.
    fn start_ticks(&self, target: u16) -> Option<u64>;

    /// The kernel has removed the probes of a target.
    fn probes_gone(&mut self, target: u16);

    /// Walks a copied stack of a target; `range_at` gives the code that lay at an address
    /// when it was copied. None if it cannot be walked at all.
    fn walk_copy<'code>(
        &mut self,
        target: u16,
        stack: &CopiedStack,
        range_at: &dyn Fn(u64) -> Option<&'code CodeRange>,
    ) -> Option<WalkedCopy>;
}

/// A stack that was walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkedCopy {
    /// Return addresses, innermost first.
    pub frames_avma: Vec<u64>,
    /// Why they end.
    pub outcome: StackOutcome,
    /// Whether at least one step followed the frame pointer, for want of unwind information.
    pub used_frame_pointers: bool,
    /// The address at which it ended because nothing is known of it, if so.
    pub unknown_avma: Option<u64>,
}

/// A range, and what is known of when it was mapped.
///
/// ```text
///    possible ├── known ──┤ possible
/// ───┬────────┬───────────┬──────────┬───▶ time
/// earliest   seen     last_seen    until
/// ```
///
/// One that was only read, once, was there at an unknown moment after `last_seen` and before
/// `seen`.
#[derive(Clone, Debug)]
struct Span {
    range: CodeRange,
    /// It was not mapped before.
    earliest_ns: u64,
    /// First moment of which it is known to be mapped.
    seen_ns: u64,
    /// What is known to have been mapped after this moment came later than this range: `seen_ns`,
    /// or of what was only read, when reading began.
    newer_than_ns: u64,
    /// Last such moment.
    last_seen_ns: u64,
    /// From then on it is known not to be mapped.
    until_ns: u64,
}

impl Span {
    fn part(&self, bounds: (u64, u64)) -> Span {
        Span { range: self.range.part(bounds), ..self.clone() }
    }

    /// How good a reason there is to take this for what was mapped at a moment, among others
    /// that may have been: the last that was seen before; if none was, what begins last.
    fn evidence(&self, time_ns: u64) -> (bool, u64) {
        if time_ns < self.seen_ns {
            (false, self.earliest_ns)
        } else if time_ns < self.last_seen_ns {
            (true, self.newer_than_ns)
        } else {
            (true, self.last_seen_ns)
        }
    }

    fn may_hold(&self, avma: u64, time_ns: u64) -> bool {
        self.range.holds(avma) && (self.earliest_ns..self.until_ns).contains(&time_ns)
    }
}

/// Executable memory of a process over time.
///
/// The kernel tells exactly when code is mapped, but not when it is unmapped; looking at the
/// process tells what is mapped at a moment. So a range that is found to be missing ended at some
/// time since it was last seen, and is found at all those times unless something newer was
/// there. Events and observations may come late and out of order.
///
/// A range mapped again as it was, at the same place from the same position of the same file, is
/// the same range if the unmapping in between was not noticed: it would not matter.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// Without overlaps, by first address.
    live: BTreeMap<u64, Span>,
    /// In the order in which they were found to have ended.
    ended: VecDeque<Span>,
    /// What is first seen from now on was not mapped before this moment.
    unseen_until_ns: u64,
    /// Time of the last exec.
    emptied_ns: u64,
    /// When the last of `ended` ended: they are no concern of later moments.
    last_end_ns: u64,
    /// Times of execs that the kernel has told and [`Self::exec`] has not met.
    pending_execs_ns: VecDeque<u64>,
    forgotten: u64,
    /// What the kernel told, in the order of time.
    told: VecDeque<Told>,
}

/// What the kernel told.
#[derive(Clone, Debug)]
struct Told {
    time_ns: u64,
    /// What was mapped; none for an exec, which unmapped everything.
    range: Option<CodeRange>,
}

impl AddressSpace {
    /// Something that the kernel had to tell was lost: what it told is no longer all there is
    /// to know.
    pub fn events_lost(&mut self) {
        self.told.clear();
    }

    fn tell(&mut self, time_ns: u64, range: Option<CodeRange>) {
        if self.told.len() == MAX_TOLD {
            self.told.pop_front();
        }
        let place = self.told.partition_point(|told| told.time_ns <= time_ns);
        self.told.insert(place, Told { time_ns, range });
    }

    /// What the kernel told last of an address, until a moment.
    fn told_at(&self, avma: u64, time_ns: u64) -> Option<&Told> {
        let after = self.told.partition_point(|told| told.time_ns <= time_ns);
        let mut before = self.told.range(..after).rev();
        before.find(|told| told.range.as_ref().is_none_or(|range| range.holds(avma)))
    }

    /// Takes what the kernel tells: this was mapped at that time, over whatever was there.
    pub fn map(&mut self, time_ns: u64, range: CodeRange) {
        self.tell(time_ns, Some(range.clone()));
        self.insert(range, time_ns, time_ns);
        if self.live.len() > MAX_LIVE_RANGES {
            self.forget_longest_unseen();
        }
    }

    /// Takes what was seen when the process was looked at.
    pub fn observe(&mut self, code: &[CodeRange], begun_ns: u64, done_ns: u64) {
        for range in code {
            self.insert_seen(range.clone(), begun_ns, done_ns);
        }
        self.end_missing(begun_ns, done_ns);
        self.unseen_until_ns = self.unseen_until_ns.max(begun_ns.saturating_add(1));
        if self.live.len() > MAX_LIVE_RANGES {
            self.forget_longest_unseen();
        }
    }

    /// Takes what the kernel tells: an exec emptied the address space at that time.
    pub fn replaced(&mut self, time_ns: u64) {
        self.tell(time_ns, None);
        self.empty(time_ns);
        if self.pending_execs_ns.len() == MAX_PENDING_EXECS {
            self.pending_execs_ns.pop_front();
        }
        let place = self.pending_execs_ns.partition_point(|pending| *pending <= time_ns);
        self.pending_execs_ns.insert(place, time_ns);
    }

    /// A record says that an exec has happened, which is later than it emptied the address
    /// space; gives the time of that. What the kernel has told of this exec or of later ones is
    /// kept; if it has told nothing, everything known ends here.
    pub fn exec(&mut self, time_ns: u64) -> u64 {
        let passed = self.pending_execs_ns.partition_point(|pending| *pending <= time_ns);
        if let Some(emptied_ns) = self.pending_execs_ns.drain(..passed).next_back() {
            return emptied_ns;
        }
        self.tell(time_ns, None);
        self.empty(time_ns);
        time_ns
    }

    /// When the image that runs at present ends, as far as the kernel has told.
    pub(super) fn next_exec_ns(&self) -> u64 {
        self.pending_execs_ns.front().copied().unwrap_or(u64::MAX)
    }

    /// All that was mapped, in no particular order.
    pub(super) fn uses(&self) -> impl Iterator<Item = Use<'_>> {
        let spans = self.ended.iter().chain(self.live.values());
        spans.map(|Span { range, earliest_ns, seen_ns, until_ns, .. }| Use {
            range,
            earliest_ns: *earliest_ns,
            seen_ns: *seen_ns,
            until_ns: *until_ns,
        })
    }

    /// Whether anything is known of what was mapped in a stretch of time.
    pub(super) fn has_mapped(&self, from_ns: u64, until_ns: u64) -> bool {
        self.uses().any(|used| used.earliest_ns < until_ns && used.until_ns > from_ns)
    }

    /// Paths of the allocators that were mapped in a stretch of time, in no particular order.
    pub(super) fn allocators_of(&self, from_ns: u64, until_ns: u64) -> Vec<String> {
        let mut paths: Vec<String> = Vec::new();
        for Use { range, seen_ns, .. } in self.uses() {
            if let Some(module) = range.module.as_ref().filter(|_| range.is_allocator())
                && (from_ns..until_ns).contains(&seen_ns)
                && !paths.contains(&module.path)
            {
                paths.push(module.path.clone());
            }
        }
        paths
    }

    /// The file that was mapped first of those mapped in a time: an exec begins with the program.
    pub(super) fn first_file_of(&self, from_ns: u64, until_ns: u64) -> Option<&Arc<Module>> {
        let of_time = self.uses().filter(|used| (from_ns..until_ns).contains(&used.seen_ns));
        of_time
            .filter_map(|used| Some((used.seen_ns, used.range.module.as_ref()?)))
            .filter(|(_, module)| module.path.starts_with('/'))
            .min_by_key(|(seen_ns, _)| *seen_ns)
            .map(|(_, module)| module)
    }

    /// What was mapped at an address at a time.
    pub fn range_at(&self, avma: u64, time_ns: u64) -> Option<&CodeRange> {
        let span = self.span_at(avma, time_ns)?;
        // The kernel tells exactly when, reading `maps` only about when; but of what was mapped
        // before the trace it tells nothing.
        let told = self.told_at(avma, time_ns).and_then(|told| told.range.as_ref());
        Some(told.filter(|told| !told.agrees_with(&span.range)).unwrap_or(&span.range))
    }

    /// Whether it is known that the same position of the same file was mapped at an address at
    /// both times. What was known of the address then holds now.
    pub fn is_unchanged_since(&self, avma: u64, from_ns: u64, at_ns: u64) -> bool {
        let (Some(from), Some(at)) = (self.span_at(avma, from_ns), self.span_at(avma, at_ns))
        else {
            return false;
        };
        let ranges = (self.range_at(avma, from_ns), self.range_at(avma, at_ns));
        if !matches!(ranges, (Some(from), Some(at)) if from.agrees_with(at)) {
            return false;
        }
        // Of a range found missing it is not known whether it was still there then.
        let was_there =
            from.seen_ns <= from_ns && (from_ns <= from.last_seen_ns || std::ptr::eq(from, at));
        was_there && from.range.agrees_with(&at.range)
    }

    /// How many ranges were given up for want of room: addresses in them are unknown.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn span_at(&self, avma: u64, time_ns: u64) -> Option<&Span> {
        let live = self.live.range(..=avma).next_back().map(|(_, span)| span);
        let live = live.filter(|span| span.may_hold(avma, time_ns));
        if time_ns >= self.last_end_ns {
            return live;
        }
        let ended = self.ended.iter().filter(|span| span.may_hold(avma, time_ns));
        ended.chain(live).max_by_key(|span| span.evidence(time_ns))
    }

    /// The first addresses of the live spans that share addresses with a range.
    fn overlapping(&self, range: &CodeRange) -> Vec<u64> {
        let before = self.live.range(..range.start_avma).next_back();
        let within = self.live.range(range.start_avma..range.end_avma.max(range.start_avma));
        before
            .into_iter()
            .chain(within)
            .filter(|(_, span)| span.range.overlap(range).is_some())
            .map(|(start, _)| *start)
            .collect()
    }

    /// Takes these addresses out of a live span and gives the part; the rest stays.
    fn cut(&mut self, key: u64, (start, end): (u64, u64)) -> Option<Span> {
        let span = self.live.remove(&key)?;
        for rest in [(span.range.start_avma, start), (end, span.range.end_avma)] {
            if rest.0 < rest.1 {
                self.live.insert(rest.0, span.part(rest));
            }
        }
        Some(span.part((start, end)))
    }

    fn keep(&mut self, span: Span) {
        self.live.insert(span.range.start_avma, span);
    }

    fn end(&mut self, span: Span, until_ns: u64) {
        if self.ended.len() == MAX_ENDED_RANGES {
            self.ended.pop_front();
            self.forgotten += 1;
        }
        self.ended.push_back(Span { until_ns, ..span });
        self.last_end_ns = self.last_end_ns.max(until_ns);
    }

    /// A range that is known to be mapped at `seen_ns` and was not before `earliest_ns`.
    fn insert(&mut self, range: CodeRange, earliest_ns: u64, seen_ns: u64) {
        let new = Span {
            range,
            earliest_ns,
            seen_ns,
            newer_than_ns: seen_ns,
            last_seen_ns: seen_ns,
            until_ns: u64::MAX,
        };
        if seen_ns < self.emptied_ns {
            // Told late, of an image that is gone.
            self.end(new, self.emptied_ns);
            return;
        }
        self.insert_over(new, Self::lay_over);
    }

    /// A range that was mapped at some moment between `begun_ns` and `done_ns`, it is not
    /// known when. What has come and gone meanwhile the kernel tells, before or after this.
    fn insert_seen(&mut self, range: CodeRange, begun_ns: u64, done_ns: u64) {
        if begun_ns < self.emptied_ns {
            self.insert(range, self.unseen_until_ns.min(begun_ns), begun_ns);
            return;
        }
        let earliest_ns = self.unseen_until_ns.min(begun_ns);
        let new = Span {
            range,
            earliest_ns,
            // It may have come as late as that, and have gone as early as this.
            newer_than_ns: begun_ns,
            seen_ns: done_ns,
            last_seen_ns: begun_ns,
            until_ns: u64::MAX,
        };
        self.insert_over(new, |space, old, new| {
            let is_seen_since = old.last_seen_ns >= begun_ns;
            if (begun_ns..=done_ns).contains(&old.seen_ns) && is_seen_since {
                // That is known better: this is the same, or was there before or after it.
                space.keep(old);
            } else if (old.seen_ns < begun_ns || !is_seen_since)
                && old.range.agrees_with(&new.range)
            {
                // It was seen before, or by a reading that overlaps with this one.
                let seen_ns = old.seen_ns.min(done_ns);
                let last_seen_ns = old.last_seen_ns.max(begun_ns);
                space.keep(Span { seen_ns, last_seen_ns, ..old });
            } else {
                space.lay_over(old, new);
            }
        });
    }

    /// Adds a range; `decide` is asked about each part of it that something is known of.
    fn insert_over(&mut self, new: Span, decide: impl Fn(&mut Self, Span, Span)) {
        let mut start = new.range.start_avma;
        for key in self.overlapping(&new.range) {
            let bounds = self.live.get(&key).and_then(|old| old.range.overlap(&new.range));
            let Some(bounds) = bounds else { continue };
            if start < bounds.0 {
                self.keep(new.part((start, bounds.0)));
            }
            if let Some(old) = self.cut(key, bounds) {
                decide(self, old, new.part(bounds));
            }
            start = bounds.1;
        }
        if start < new.range.end_avma {
            self.keep(new.part((start, new.range.end_avma)));
        }
    }

    /// Decides between what was held to be at some addresses and what is said to be there.
    fn lay_over(&mut self, old: Span, new: Span) {
        let time_ns = new.seen_ns;
        // What was known before tells more of the time before than its lateness does.
        let late = Span { earliest_ns: time_ns, ..new.clone() };
        if old.range.agrees_with(&new.range) {
            if time_ns >= old.seen_ns {
                let last_seen_ns = old.last_seen_ns.max(time_ns);
                self.keep(Span { last_seen_ns, ..old });
            } else if old.earliest_ns <= time_ns && old.seen_ns == old.last_seen_ns {
                self.keep(Span { last_seen_ns: old.last_seen_ns, ..late });
            } else {
                // Something else may have been there in between, or if not, joined to one it
                // would no longer be known that it was there at `old.seen_ns`.
                self.end(late, old.seen_ns);
                self.keep(old);
            }
        } else if old.last_seen_ns <= time_ns {
            let after_old_ns = old.last_seen_ns.saturating_add(1).min(time_ns);
            let earliest_ns = new.earliest_ns.max(after_old_ns);
            self.end(old, time_ns);
            self.keep(Span { earliest_ns, ..new });
        } else if time_ns < old.newer_than_ns {
            self.end(late, old.seen_ns);
            let earliest_ns = old.earliest_ns.max(time_ns.saturating_add(1));
            self.keep(Span { earliest_ns, ..old });
        } else {
            // Something else was there in between.
            let again_ns = old.last_seen_ns;
            let earliest_ns = time_ns.saturating_add(1);
            let again =
                Span { earliest_ns, seen_ns: again_ns, newer_than_ns: again_ns, ..old.clone() };
            self.end(Span { last_seen_ns: time_ns, ..old }, time_ns);
            self.end(late, again_ns);
            self.keep(again);
        }
    }

    /// Ends what was last seen before an observation, and so is not in it.
    fn end_missing(&mut self, begun_ns: u64, done_ns: u64) {
        let missing = self.live.extract_if(.., |_, span| span.last_seen_ns < begun_ns);
        let missing: Vec<Span> = missing.map(|(_, span)| span).collect();
        for span in missing {
            self.end(span, done_ns);
        }
    }

    /// Ends everything at a moment, but what has been seen since.
    fn empty(&mut self, time_ns: u64) {
        for (_, span) in std::mem::take(&mut self.live) {
            if span.seen_ns > time_ns {
                let earliest_ns = span.earliest_ns.max(time_ns);
                self.keep(Span { earliest_ns, ..span });
                continue;
            }
            if span.last_seen_ns > time_ns {
                let seen_ns = span.last_seen_ns;
                let earliest_ns = time_ns;
                self.keep(Span { earliest_ns, seen_ns, newer_than_ns: seen_ns, ..span.clone() });
            }
            let last_seen_ns = span.last_seen_ns.min(time_ns);
            self.end(Span { last_seen_ns, ..span }, time_ns);
        }
        for span in &mut self.ended {
            if span.last_seen_ns <= time_ns {
                span.until_ns = span.until_ns.min(time_ns);
            }
        }
        self.emptied_ns = self.emptied_ns.max(time_ns);
        self.unseen_until_ns = self.unseen_until_ns.max(time_ns);
    }

    /// Gives up the half that was not seen for the longest time.
    fn forget_longest_unseen(&mut self) {
        let mut times: Vec<u64> = self.live.values().map(|span| span.last_seen_ns).collect();
        let middle = times.len() / 2;
        let (_, &mut median_ns, _) = times.select_nth_unstable(middle);
        let mut to_go = middle;
        let before = self.live.len();
        self.live.retain(|_, span| {
            let goes = to_go > 0 && span.last_seen_ns <= median_ns;
            to_go -= usize::from(goes);
            !goes
        });
        self.forgotten += (before - self.live.len()) as u64;
    }
}

#[cfg(test)]
mod tests;
