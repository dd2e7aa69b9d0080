//! Blocks that one allocator gave, and that a function of another was given to be freed or
//! reallocated.
//!
//! Only what is known for certain counts; `docs/allocators.md` has the rule, and why it is so.

use hashbrown::HashSet;
use rustc_hash::FxBuildHasher;

use super::{block::LiveBlock, state::Map};
use crate::model::{AllocatorCall, AllocatorId, OwnerEvidence, ProbeId, ProbeOwner};

/// Records have 16 bits for a probe, and eight for an allocator; only a forged recording has others.
const MAX_PROBES: usize = 1 << 16;
const MAX_ALLOCATORS: u32 = 1 << 8;

/// Blocks of one site that one function gave and another one was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where they began: an index into [`super::Tracker::sites`].
    pub site: u32,
    /// Which function gave them.
    pub given_by: ProbeId,
    /// Which one was to free or reallocate them.
    pub freed_by: ProbeId,
    /// How many times.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    site: u32,
    given_by: ProbeId,
    freed_by: ProbeId,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    frees: u64,
    bytes: u64,
    last_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    allocator: AllocatorId,
    known_by: OwnerEvidence,
}

/// What is known of allocators, and what was seen of their blocks.
#[derive(Debug, Default)]
pub(super) struct Mismatches {
    /// By probe.
    owners: Vec<Option<Owner>>,
    /// Any of them.
    one: Option<AllocatorId>,
    /// There are others.
    has_several: bool,
    calls: HashSet<AllocatorCall, FxBuildHasher>,
    found: Map<Key, Sums>,
    /// Until when something is missing of what was seen so far.
    lost_until_ns: u64,
    distrusted: bool,
}

impl Mismatches {
    /// Says whose a probed function is.
    pub(super) fn define(&mut self, owner: &ProbeOwner) {
        let ProbeOwner { probe, allocator, known_by } = *owner;
        if probe.index() >= MAX_PROBES || allocator.0 >= MAX_ALLOCATORS {
            return;
        }
        if self.owners.len() <= probe.index() {
            self.owners.resize(probe.index() + 1, None);
        }
        if let Some(place) = self.owners.get_mut(probe.index()) {
            *place = Some(Owner { allocator, known_by });
        }
        self.has_several |= *self.one.get_or_insert(allocator) != allocator;
    }

    /// A function of one allocator has called one of another.
    pub(super) fn called(&mut self, call: &AllocatorCall) {
        let known = |id: Option<AllocatorId>| id.filter(|id| id.0 < MAX_ALLOCATORS);
        self.calls.insert(AllocatorCall { outer: known(call.outer), inner: known(call.inner) });
    }

    /// Whether there can be any: most programs have one allocator.
    #[inline]
    pub(super) fn may_be(&self) -> bool {
        self.has_several
    }

    fn owner(&self, probe: ProbeId) -> Option<Owner> {
        *self.owners.get(probe.index())?
    }

    /// A function was given a block to be freed or reallocated.
    pub(super) fn judge(
        &mut self,
        block: &LiveBlock,
        given_by: ProbeId,
        freed_by: ProbeId,
        time_ns: u64,
    ) {
        let (Some(giver), Some(other)) = (self.owner(given_by), self.owner(freed_by)) else {
            return;
        };
        // Of sampled blocks, and of those from before a loss, another one can have taken the place.
        let is_known = block.interval_bytes == 0 && block.allocated_ns > self.lost_until_ns;
        if giver.allocator == other.allocator || !is_known || self.distrusted {
            return;
        }
        let sums = self.found.entry(Key { site: block.site, given_by, freed_by }).or_default();
        sums.frees = sums.frees.wrapping_add(1);
        sums.bytes = sums.bytes.wrapping_add(block.size_bytes);
        sums.last_ns = sums.last_ns.max(time_ns);
    }

    /// Records are missing. A marker comes when records of its CPU get through again, and others have
    /// come in between: what was seen since is not certain any more.
    pub(super) fn lose(&mut self, first_lost_ns: u64, until_ns: u64) {
        self.found.retain(|_, sums| sums.last_ns < first_lost_ns);
        self.lost_until_ns = self.lost_until_ns.max(until_ns);
    }

    /// Something is missing, and nobody knows where.
    pub(super) fn distrust(&mut self) {
        self.found.clear();
        self.distrusted = true;
    }

    /// What is known for certain, by site.
    pub(super) fn certain(&self) -> Vec<Mismatch> {
        let are_apart = |key: &Key| {
            let owners = self.owner(key.given_by).zip(self.owner(key.freed_by));
            owners.is_some_and(|(giver, other)| self.are_apart(giver, other))
        };
        let mut certain: Vec<(&Key, &Sums)> =
            self.found.iter().filter(|(key, _)| are_apart(key)).collect();
        certain.sort_by_key(|(key, _)| **key);
        let mismatch = |(key, sums): (&Key, &Sums)| Mismatch {
            site: key.site,
            given_by: key.given_by,
            freed_by: key.freed_by,
            frees: sums.frees,
            bytes: sums.bytes,
        };
        certain.into_iter().map(mismatch).collect()
    }

    /// Whether no block that the one gave can be the other's, whatever either does.
    fn are_apart(&self, giver: Owner, other: Owner) -> bool {
        // What a described one gives can lie at the beginning of a block that it has taken from
        // another one, which is then rightly freed there.
        if giver.known_by == OwnerEvidence::Description {
            return false;
        }
        let (giver, other_id) = (Some(giver.allocator), Some(other.allocator));
        let calls = |outer, inner| self.calls.contains(&AllocatorCall { outer, inner });
        if calls(giver, other_id) || calls(giver, None) {
            return false;
        }
        match other.known_by {
            OwnerEvidence::Module => !calls(other_id, giver) && !calls(other_id, None),
            // It is said to be an allocator of its own, even if it builds on others. But what it gives
            // inside of calls of others is not seen.
            OwnerEvidence::Description => !self.calls.iter().any(|call| call.inner == other_id),
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.owners.capacity() * size_of::<Option<Owner>>()
            + self.calls.allocation_size()
            + self.found.allocation_size()
    }
}
