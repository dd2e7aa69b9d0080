//! Call chains as a reader can tell them apart.

use std::{collections::hash_map::Entry, hash::Hash};

use rustc_hash::FxHashMap;

use super::{
    Analysis,
    frames::{ResolvedFrame, ResolvedStack},
};
use crate::{
    lifetimes::SiteKey,
    model::{ProcessId, StackOutcome},
};

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
