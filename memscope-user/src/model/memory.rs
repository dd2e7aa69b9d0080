use serde::{Deserialize, Serialize};

use super::ProcessId;

/// How much memory a process had at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReading {
    /// Whose.
    pub process: ProcessId,
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// What was read then.
    pub memory: ProcessMemory,
}

/// The memory of a process as the kernel counts it. What could not be read, or was not to be
/// read at that moment, is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Its resident pages (RSS).
    pub resident: Option<ResidentMemory>,
    /// The most that was ever resident in this image of the process, by the kernel's own account.
    pub peak_resident_bytes: Option<u64>,
    /// Its pages in swap.
    pub swapped_bytes: Option<u64>,
    /// Its share of resident pages (PSS): one that n processes map counts for an n-th. Read
    /// rarely, as the kernel walks through all pages for it.
    pub proportional_bytes: Option<u64>,
    /// The group that its memory is charged to.
    pub control_group: Option<ControlGroupMemory>,
    /// Only read when a process that ran already was attached to.
    pub heap_mappings: Option<HeapMappings>,
}

/// Resident pages by their kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidentMemory {
    /// Without a file: heaps, stacks, changed pages of private mappings.
    pub anonymous_bytes: u64,
    /// Of files.
    pub file_bytes: u64,
    /// Of shared memory.
    pub shared_bytes: u64,
}

impl ResidentMemory {
    /// All of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // A forged recording can hold numbers that have no sum.
        self.anonymous_bytes.saturating_add(self.file_bytes).saturating_add(self.shared_bytes)
    }
}

/// A control group, and what all its processes together are charged with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlGroupMemory {
    /// Its path as `/proc/PID/cgroup` gives it. Untrusted text.
    pub path: String,
    /// Page cache and memory of the kernel included.
    pub bytes: Option<u64>,
}

/// Mappings in which allocators keep blocks, together with whatever else is in such mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapMappings {
    /// What grows by `brk`: `[heap]`.
    pub brk: MappedMemory,
    /// Private, writable and without a file: arenas and large blocks of allocators, stacks of
    /// threads, and what the program mapped itself. Not the main thread's stack.
    pub anonymous: MappedMemory,
}

/// Sizes of mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedMemory {
    /// Of their addresses.
    pub mapped_bytes: u64,
    /// Of their resident pages.
    pub resident_bytes: u64,
}
