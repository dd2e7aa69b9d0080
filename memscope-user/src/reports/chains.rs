//! Call chains as a reader can tell them apart.

use std::{
    collections::{BTreeSet, hash_map::Entry},
    hash::Hash,
};

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    Analysis, Detail,
    folding::{Programs, VisibleChain},
    frames::ResolvedFrame,
    layout::{self, Chain},
    origin::ProcessName,
};
use crate::{lifetimes::SiteKey, model::ProcessId};

/// A call chain of a process as reports and exports tell it. Chains that differ only in where in
/// their functions' lines they are, are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedChain<'a> {
    /// Whose it is.
    #[serde(flatten)]
    pub process: ProcessName<'a>,
    /// How many processes have it; more than one in text only.
    #[serde(skip)]
    pub process_count: usize,
    /// Innermost first.
    pub frames: Vec<ResolvedFrame<'a>>,
    /// Whether the chain is complete, or why not: a
    /// [`crate::model::StackOutcome::name`].
    pub stack: &'static str,
}

impl<'a> NamedChain<'a> {
    pub(super) fn of(analysis: &'a Analysis, chain: VisibleChain<'a>, others: usize) -> Self {
        let VisibleChain { process, outcome, frames } = chain;
        Self {
            process: ProcessName::of(analysis, process),
            process_count: 1 + others,
            frames,
            stack: outcome.name(),
        }
    }

    /// All of it, as lines under what was told of it.
    pub(super) fn tell(&self, out: &mut String, analysis: &Analysis) {
        let chain = Chain {
            process: self.process,
            process_count: self.process_count,
            frames: &self.frames,
            outcome: self.stack,
        };
        layout::chain(out, &chain, Detail::All, analysis);
    }
}

/// Sites of the same call chain and the same kind.
pub(super) struct MergedChain<'a, K, S> {
    pub(super) chain: VisibleChain<'a>,
    pub(super) kind: K,
    pub(super) sums: S,
    /// Processes that have it, besides the first.
    others: BTreeSet<ProcessId>,
}

impl<'a, K, S> MergedChain<'a, K, S> {
    /// As it is told.
    pub(super) fn named(self, analysis: &'a Analysis) -> (NamedChain<'a>, K, S) {
        (NamedChain::of(analysis, self.chain, self.others.len()), self.kind, self.sums)
    }
}

/// Sums of sites, those of the same call chain and the same `kind` together, of processes that run
/// the same program too if they are folded; in the order in which these were first seen.
pub(super) fn merged<'a, K: Copy + Eq + Hash, S: Copy>(
    analysis: &'a Analysis,
    detail: Detail,
    sites: impl Iterator<Item = (SiteKey, K, S)>,
    add: impl Fn(&mut S, &S),
) -> Vec<MergedChain<'a, K, S>> {
    let programs = (detail == Detail::Folded).then(|| Programs::of(analysis));
    let mut all: Vec<MergedChain<'_, K, S>> = Vec::new();
    let mut known: FxHashMap<(VisibleChain<'_>, K), usize> = FxHashMap::default();
    for (key, kind, sums) in sites {
        let process = programs.as_ref().map_or(key.process, |all| all.first(key.process));
        // They are told with all their functions, see `NamedChain::tell`.
        let chain = VisibleChain::of(analysis, process, key.stack, Detail::All);
        match known.entry((chain, kind)) {
            Entry::Occupied(first) => {
                if let Some(known) = all.get_mut(*first.get()) {
                    add(&mut known.sums, &sums);
                    if key.process != known.chain.process {
                        known.others.insert(key.process);
                    }
                }
            }
            Entry::Vacant(place) => {
                let chain = VisibleChain { process: key.process, ..place.key().0.clone() };
                all.push(MergedChain { chain, kind, sums, others: BTreeSet::new() });
                place.insert(all.len() - 1);
            }
        }
    }
    all
}
