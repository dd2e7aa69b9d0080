//! What each thread has done: sums by who made the call, whoever's the block was.

use super::{Weight, state::Map};
use crate::model::{ProcessId, ThreadId};

/// Threads that have ended and are told one by one; a server can begin millions.
const MAX_ENDED_THREADS: usize = 1 << 16;

/// Sums of the calls of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadSums {
    /// Blocks that began in its calls.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Blocks that it ended, whoever had allocated them.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Those that it had allocated itself, with no other allocation of it in between.
    pub temporary_allocations: u64,
    /// Its calls that returned no block.
    pub failed_allocations: u64,
}

impl ThreadSums {
    fn all(&mut self) -> [&mut u64; 6] {
        [
            &mut self.allocations,
            &mut self.allocated_bytes,
            &mut self.frees,
            &mut self.freed_bytes,
            &mut self.temporary_allocations,
            &mut self.failed_allocations,
        ]
    }

    /// Adds those of another thread. Sums wrap, see [`super::SiteSums`].
    pub(super) fn add(&mut self, mut other: Self) {
        for (sum, other) in self.all().into_iter().zip(other.all()) {
            *sum = sum.wrapping_add(*other);
        }
    }

    /// If what was seen stands for so much.
    pub(super) fn scaled(mut self, scale: f64) -> Self {
        for sum in self.all() {
            *sum = (*sum as f64 * scale) as u64;
        }
        self
    }

    #[inline]
    pub(super) fn begin(&mut self, weight: Weight) {
        self.allocations = self.allocations.wrapping_add(weight.blocks);
        self.allocated_bytes = self.allocated_bytes.wrapping_add(weight.bytes);
    }

    #[inline]
    pub(super) fn end(&mut self, weight: Weight, temporary: bool) {
        self.frees = self.frees.wrapping_add(weight.blocks);
        self.freed_bytes = self.freed_bytes.wrapping_add(weight.bytes);
        if temporary {
            self.temporary_allocations = self.temporary_allocations.wrapping_add(weight.blocks);
        }
    }

    pub(super) fn fail(&mut self, calls: u64) {
        self.failed_allocations = self.failed_allocations.wrapping_add(calls);
    }
}

/// A thread and what it has done. Threads of a process that had the same number one after the
/// other are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadRecord {
    /// Which one; none for all those together that were too many to be told one by one.
    pub thread: Option<(ProcessId, ThreadId)>,
    /// Its calls.
    pub sums: ThreadSums,
    /// What lives of what it has allocated.
    pub live: Weight,
}

/// The threads that have ended.
#[derive(Debug, Default)]
pub(super) struct EndedThreads {
    known: Map<(ProcessId, ThreadId), ThreadSums>,
    others: ThreadSums,
}

impl EndedThreads {
    pub(super) fn add(&mut self, process: ProcessId, thread: ThreadId, sums: ThreadSums) {
        if sums == ThreadSums::default() {
            return;
        }
        let key = (process, thread);
        if self.known.len() >= MAX_ENDED_THREADS && !self.known.contains_key(&key) {
            self.others.add(sums);
        } else {
            self.known.entry(key).or_default().add(sums);
        }
    }

    /// Of a thread of which nothing else is kept.
    pub(super) fn others(&mut self) -> &mut ThreadSums {
        &mut self.others
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.known.allocation_size()
    }

    /// These, the ones that run, and what lives of whose; by process and number, the others last.
    pub(super) fn with(
        &self,
        running: impl Iterator<Item = (ProcessId, ThreadId, ThreadSums)>,
        live: impl Iterator<Item = (ProcessId, ThreadId, Weight)>,
    ) -> Vec<ThreadRecord> {
        let mut all: Map<(ProcessId, ThreadId), ThreadRecord> = Map::default();
        let ended = self.known.iter().map(|((process, thread), sums)| (*process, *thread, *sums));
        let nothing = Weight { blocks: 0, bytes: 0 };
        for (process, thread, sums) in ended.chain(running) {
            let key = (process, thread);
            let empty =
                ThreadRecord { thread: Some(key), sums: ThreadSums::default(), live: nothing };
            all.entry(key).or_insert(empty).sums.add(sums);
        }
        let mut others = ThreadRecord { thread: None, sums: self.others, live: nothing };
        for (process, thread, weight) in live {
            let live = &mut all.get_mut(&(process, thread)).unwrap_or(&mut others).live;
            live.blocks = live.blocks.wrapping_add(weight.blocks);
            live.bytes = live.bytes.wrapping_add(weight.bytes);
        }
        let mut all: Vec<ThreadRecord> = all.into_values().chain([others]).collect();
        all.retain(|record| record.sums != ThreadSums::default() || record.live != nothing);
        all.sort_by_key(|record| (record.thread.is_none(), record.thread));
        all
    }
}
