use crate::model::{ProbeId, ProcessId, ThreadId};

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
    /// Frees, in a forked process, of blocks that its parent had allocated.
    pub inherited_frees: u64,
    /// Calls that gave a block of one allocator to a function of another that frees or reallocates,
    /// as far as that is known.
    pub mismatched_frees: u64,
    /// Calls of free by the allocator itself for blocks already freed; no frees.
    pub allocator_internal_frees: u64,
    /// Blocks whose end was not seen, but whose address was given out again.
    pub unseen_ends: u64,
    /// Sum of their requested sizes.
    pub unseen_end_bytes: u64,
    /// Records lost, as told by markers in the stream.
    pub marked_losses: u64,
    /// Of the allocations, those whose records were lost and that were counted by their stack;
    /// they are among the unseen ends, too.
    pub counted_allocations: u64,
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

/// What a block counts for in sums. Without sampling that is itself; a sampled block
/// also counts for those that were not drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// So many blocks.
    pub blocks: u64,
    /// So many bytes.
    pub bytes: u64,
}

impl Weight {
    /// That of a block that stands for itself.
    pub(super) const fn one(size_bytes: u64) -> Self {
        Self { blocks: 1, bytes: size_bytes }
    }
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
    /// Where it began: an index into [`super::Tracker::sites`].
    pub site: u32,
    /// By which thread.
    pub thread: ThreadId,
    /// What it counts for.
    pub weight: Weight,
    /// Mean bytes between two sampled blocks when it was drawn; 0 without sampling.
    pub interval_bytes: u64,
    /// Which function gave it, if not the one that gave its site's first block.
    pub(super) other_probe: Option<ProbeId>,
    /// The how-manieth allocation of all it was, modulo 2^31.
    pub(super) ordinal: u32,
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
