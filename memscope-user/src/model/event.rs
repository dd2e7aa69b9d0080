use serde::{Deserialize, Serialize};

use super::{ProbeId, ProcessId, ResidentBytes, StackId, ThreadId};

/// Something that happened in a traced process, or a gap where something may have.
///
/// Times are `CLOCK_MONOTONIC` nanoseconds. The order of events is that in which
/// the kernel took them, which is a valid order of what they tell: a block's
/// allocation comes before its free, and its free before the next allocation
/// at its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A call returned a block, or failed (`address_avma` 0).
    Allocation {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call returned.
        time_ns: u64,
        /// What it returned.
        address_avma: u64,
        /// What was asked for.
        size_bytes: u64,
        /// From where.
        stack: StackId,
        /// By which function.
        probe: ProbeId,
        /// Mean bytes between two sampled blocks when this one was drawn; 0 if
        /// every block was recorded.
        interval_bytes: u64,
    },
    /// A block is about to be freed.
    Free {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call was entered.
        time_ns: u64,
        /// Which block.
        address_avma: u64,
        /// By which function; none if the recording does not say.
        probe: Option<ProbeId>,
        /// Who called.
        caller: FreeCaller,
    },
    /// A reallocation of an existing block was entered: from now on the allocator
    /// may hand out its address again.
    ReallocationBegin {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call was entered.
        time_ns: u64,
        /// Which block.
        old_address_avma: u64,
        /// By which function; none if the recording does not say.
        probe: Option<ProbeId>,
    },
    /// A reallocation of an existing block returned: moved it, resized it in place,
    /// freed it (new address and size 0), or failed (new address 0).
    ReallocationEnd {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call returned.
        time_ns: u64,
        /// Which block.
        old_address_avma: u64,
        /// What the call returned.
        new_address_avma: u64,
        /// What was asked for.
        size_bytes: u64,
        /// From where.
        stack: StackId,
        /// By which function.
        probe: ProbeId,
        /// Mean bytes between two sampled blocks when this one was drawn; 0 if
        /// every block was recorded.
        interval_bytes: u64,
    },
    /// A thread ended.
    ThreadExit {
        /// Whose.
        process: ProcessId,
        /// Which.
        thread: ThreadId,
        /// When.
        time_ns: u64,
    },
    /// Records are missing here.
    Loss {
        /// When the first of them was made.
        first_lost_ns: u64,
        /// When records got through again.
        time_ns: u64,
        /// How many.
        lost_count: u64,
    },
    /// A page fault was handled.
    PageFault {
        /// Whose.
        process: ProcessId,
        /// Of which thread.
        thread: ThreadId,
        /// When it was handled.
        time_ns: u64,
        /// What was accessed.
        address_avma: u64,
        /// From where.
        stack: StackId,
        /// What became resident by it.
        resident: ResidentBytes,
        /// Whether it had to wait, for a disk or for another thread.
        is_major: bool,
    },
    /// Memory was mapped, or a call that should have done so failed.
    Mapping {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call returned.
        time_ns: u64,
        /// Where it is; 0 if the call failed.
        address_avma: u64,
        /// How long it is, in whole pages.
        size_bytes: u64,
        /// From where.
        stack: StackId,
        /// What it is.
        kind: MappingKind,
        /// Who wanted it.
        by: MappedBy,
    },
    /// Memory is mapped no more, as far as it was.
    Unmapping {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call was entered, or returned if it was `brk`.
        time_ns: u64,
        /// Where it begins.
        address_avma: u64,
        /// How long it is, in whole pages.
        size_bytes: u64,
    },
    /// Mapped memory has another size or place (`mremap`).
    Remapping {
        /// Whose.
        process: ProcessId,
        /// By which thread.
        thread: ThreadId,
        /// When the call was entered.
        began_ns: u64,
        /// When it returned.
        time_ns: u64,
        /// Where it was.
        old_address_avma: u64,
        /// How long it was, in whole pages.
        old_size_bytes: u64,
        /// Where it is.
        new_address_avma: u64,
        /// How long it is, in whole pages.
        new_size_bytes: u64,
        /// Whether it is where it was as well.
        keeps_old: bool,
        /// From where.
        stack: StackId,
        /// Who wanted it.
        by: MappedBy,
    },
}

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MappingKind {
    /// Memory of the process alone.
    Anonymous,
    /// Memory that processes share, without a file.
    Shared,
    /// A file, or shared memory that has one.
    File,
    /// The heap whose end `brk` moves.
    Heap,
    /// It was moved, and what it was is not known.
    Unknown,
}

impl MappingKind {
    /// All of them, in order.
    pub const ALL: [Self; 5] =
        [Self::Anonymous, Self::Shared, Self::File, Self::Heap, Self::Unknown];

    /// Name in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
            Self::File => "file",
            Self::Heap => "heap",
            Self::Unknown => "unknown",
        }
    }
}

/// Who has wanted something to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MappedBy {
    /// The program, or a library.
    Program,
    /// An allocator, inside a call of this function. What it makes blocks of is counted as those
    /// as well.
    Allocator(ProbeId),
    /// That is not known, as not all calls of allocators are followed.
    Unknown,
}

impl MappedBy {
    /// Name in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Allocator(_) => "allocator",
            Self::Unknown => "unknown",
        }
    }
}

/// Who called a function that frees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FreeCaller {
    /// Code outside the allocator's module, or unknown.
    Program,
    /// Code of the module that the allocator is in, such as glibc when it empties
    /// a dying thread's cache of blocks that the program had freed already.
    AllocatorModule,
}

impl Event {
    /// When it happened.
    #[must_use]
    pub const fn time_ns(&self) -> u64 {
        match *self {
            Self::Allocation { time_ns, .. }
            | Self::Free { time_ns, .. }
            | Self::ReallocationBegin { time_ns, .. }
            | Self::ReallocationEnd { time_ns, .. }
            | Self::ThreadExit { time_ns, .. }
            | Self::Loss { time_ns, .. }
            | Self::PageFault { time_ns, .. }
            | Self::Mapping { time_ns, .. }
            | Self::Unmapping { time_ns, .. }
            | Self::Remapping { time_ns, .. } => time_ns,
        }
    }
}
