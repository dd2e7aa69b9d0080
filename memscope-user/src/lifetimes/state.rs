use hashbrown::HashMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::{block::LiveBlock, sites::SiteKey};
use crate::model::ThreadId;

/// A reallocation that was entered and has not returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) old_address_avma: u64,
    /// When the old address was given out again, the block there having moved: it
    /// was closed then, and what lives there now is another block.
    pub(super) closed: Option<ClosedInFlight>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ClosedInFlight {
    pub(super) chain_allocated_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Thread {
    /// Ordinal of its last allocation; none before the first. Ordinals count the
    /// allocations of all threads, so that a thread which gets the number of one
    /// that has ended does not continue its count.
    pub(super) last_ordinal: Option<u32>,
    /// Frees of unknown blocks by the allocator's own module, with nothing after
    /// them yet: what they are is decided by what comes next.
    pub(super) pending_internal_frees: u64,
}

/// What is known of a process while it runs.
#[derive(Debug, Default)]
pub(super) struct ProcessState {
    pub(super) live: HashMap<u64, LiveBlock, FxBuildHasher>,
    pub(super) threads: FxHashMap<ThreadId, Thread>,
    pub(super) in_flight: FxHashMap<ThreadId, InFlight>,
}

/// Fields that allocation and reallocation share.
#[derive(Clone, Copy)]
pub(super) struct Begin {
    pub(super) key: SiteKey,
    pub(super) thread: ThreadId,
    pub(super) time_ns: u64,
    pub(super) address_avma: u64,
    pub(super) size_bytes: u64,
}
