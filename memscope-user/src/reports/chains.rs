//! Call chains as a reader can tell them apart.

use std::{collections::hash_map::Entry, hash::Hash};

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    Analysis, Wrappers,
    frames::{ResolvedFrame, ResolvedStack},
    layout::{self, Chain},
    origin::ProcessName,
};
use crate::{
    lifetimes::SiteKey,
    model::{ProcessId, StackOutcome},
};

/// A call chain of a process as reports and exports tell it. Chains that differ only in where in
/// their functions' lines they are, are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedChain<'a> {
    /// Whose it is.
    #[serde(flatten)]
    pub process: ProcessName<'a>,
    /// Innermost first.
    pub frames: Vec<ResolvedFrame<'a>>,
    /// Whether the chain is complete, or why not: a [`StackOutcome::name`].
    pub stack: &'static str,
}

impl<'a> NamedChain<'a> {
    pub(super) fn of(analysis: &'a Analysis, chain: VisibleChain<'a>) -> Self {
        let VisibleChain { process, outcome, frames } = chain;
        Self { process: ProcessName::of(analysis, process), frames, stack: outcome.name() }
    }

    /// All of it, as lines under what was told of it.
    pub(super) fn tell(&self, out: &mut String, analysis: &Analysis) {
        let chain = Chain { process: self.process, frames: &self.frames, outcome: self.stack };
        layout::chain(out, &chain, Wrappers::Shown, analysis);
    }
}

/// A call chain of a process, without where in their functions' lines it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct VisibleChain<'a> {
    pub(super) process: ProcessId,
    pub(super) outcome: StackOutcome,
    pub(super) frames: Vec<ResolvedFrame<'a>>,
}

/// Sums of sites, those of the same call chain and the same `kind` together; in the order in which
/// these were first seen.
pub(super) fn merged<'a, K: Copy + Eq + Hash, S: Copy>(
    analysis: &'a Analysis,
    sites: impl Iterator<Item = (SiteKey, K, S)>,
    add: impl Fn(&mut S, &S),
) -> Vec<(VisibleChain<'a>, K, S)> {
    let mut all: Vec<(VisibleChain<'_>, K, S)> = Vec::new();
    let mut known: FxHashMap<(VisibleChain<'_>, K), usize> = FxHashMap::default();
    for (key, kind, sums) in sites {
        let mut stack = ResolvedStack::of(&analysis.definitions, key.stack);
        for frame in stack.frames.iter_mut().filter(|frame| frame.function.is_some()) {
            frame.offset = 0;
        }
        let ResolvedStack { outcome, frames, .. } = stack;
        match known.entry((VisibleChain { process: key.process, outcome, frames }, kind)) {
            Entry::Occupied(first) => {
                if let Some((.., known)) = all.get_mut(*first.get()) {
                    add(known, &sums);
                }
            }
            Entry::Vacant(place) => {
                all.push((place.key().0.clone(), kind, sums));
                place.insert(all.len() - 1);
            }
        }
    }
    all
}
