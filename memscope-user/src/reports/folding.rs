//! Which functions of a call chain a reader wants to see, and sites that differ only in
//! the others.

use std::{
    borrow::Cow,
    collections::{BTreeSet, hash_map::Entry},
};

use rustc_hash::FxHashMap;

use super::{
    Analysis, LiveAge,
    frames::{ResolvedFrame, ResolvedStack, wrapper_count},
};
use crate::{
    lifetimes::Site,
    model::{ProcessId, StackId, StackOutcome},
};

/// How much of what differs a reader wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Functions that only hand requests on to the allocator (see
    /// [`ResolvedFrame::is_allocator_wrapper`]) are not shown, and sites that differ in nothing else
    /// are one; those of processes that run the same program, too.
    Folded,
    /// All.
    All,
}

impl Detail {
    /// How many of the innermost frames are not shown.
    pub(super) fn hidden(self, frames: &[ResolvedFrame<'_>]) -> usize {
        match self {
            Self::Folded => wrapper_count(frames),
            Self::All => 0,
        }
    }
}

/// Sites that a reader cannot tell apart, as one.
pub(super) struct MergedSite<'a> {
    /// Number of the first.
    pub(super) number: usize,
    /// The only one, or the sum of all.
    pub(super) site: Cow<'a, Site>,
    /// Ages of the live blocks of all.
    pub(super) ages: Option<LiveAge>,
    /// Whose they are, besides the first one's.
    others: BTreeSet<ProcessId>,
}

impl<'a> MergedSite<'a> {
    /// A site by itself.
    pub(super) fn of(analysis: &Analysis, number: usize, site: &'a Site) -> Self {
        let ages = u32::try_from(number).ok().and_then(|number| analysis.live_ages.get(&number));
        Self { number, site: Cow::Borrowed(site), ages: ages.copied(), others: BTreeSet::new() }
    }

    /// Of how many processes it is.
    pub(super) fn process_count(&self) -> usize {
        1 + self.others.len()
    }

    fn add(&mut self, other: &MergedSite<'_>) {
        if other.site.key.process != self.site.key.process {
            self.others.insert(other.site.key.process);
        }
        self.site.to_mut().merge(&other.site);
        self.ages = match (self.ages, other.ages) {
            (Some(left), Some(right)) => Some(LiveAge {
                oldest_allocated_ns: left.oldest_allocated_ns.min(right.oldest_allocated_ns),
                newest_allocated_ns: left.newest_allocated_ns.max(right.newest_allocated_ns),
            }),
            (left, right) => left.or(right),
        };
    }
}

/// All sites, in the order in which they were first seen.
pub(super) fn merged(analysis: &Analysis, detail: Detail) -> Vec<MergedSite<'_>> {
    let sites = analysis.sites.iter().enumerate();
    let sites = sites.map(|(number, site)| MergedSite::of(analysis, number, site));
    if detail == Detail::All {
        return sites.collect();
    }
    let mut all: Vec<MergedSite<'_>> = Vec::new();
    let mut known: FxHashMap<VisibleChain<'_>, usize> = FxHashMap::default();
    let programs = Programs::of(analysis);
    for site in sites {
        let key = site.site.key;
        let process = programs.first(key.process);
        match known.entry(VisibleChain::of(analysis, process, key.stack, detail)) {
            Entry::Occupied(first) => {
                if let Some(first) = all.get_mut(*first.get()) {
                    first.add(&site);
                }
            }
            Entry::Vacant(place) => {
                place.insert(all.len());
                all.push(site);
            }
        }
    }
    all
}

/// What a reader sees of a call chain of a process.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct VisibleChain<'a> {
    pub(super) process: ProcessId,
    pub(super) outcome: StackOutcome,
    pub(super) frames: Vec<ResolvedFrame<'a>>,
}

impl<'a> VisibleChain<'a> {
    pub(super) fn of(
        analysis: &'a Analysis,
        process: ProcessId,
        stack: StackId,
        detail: Detail,
    ) -> Self {
        let ResolvedStack { outcome, mut frames, .. } =
            ResolvedStack::of(&analysis.definitions, stack);
        frames.drain(..detail.hidden(&frames));
        // Of a function with a name its line is shown, and not where in the file it is.
        for frame in frames.iter_mut().filter(|frame| frame.function.is_some()) {
            frame.offset = 0;
        }
        Self { process, outcome, frames }
    }
}

/// The first process of those that run the same program under the same name, for each process.
pub(super) struct Programs(FxHashMap<ProcessId, ProcessId>);

impl Programs {
    pub(super) fn of(analysis: &Analysis) -> Self {
        let processes = analysis.definitions.processes.values();
        let mut first: FxHashMap<(&str, &str), ProcessId> = FxHashMap::default();
        Self(
            processes
                .map(|process| {
                    let program = (process.comm.as_str(), process.exe.as_str());
                    (process.id, *first.entry(program).or_insert(process.id))
                })
                .collect(),
        )
    }

    /// One that is not defined is a program of its own.
    pub(super) fn first(&self, process: ProcessId) -> ProcessId {
        self.0.get(&process).copied().unwrap_or(process)
    }
}
