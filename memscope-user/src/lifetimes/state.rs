use hashbrown::{HashMap, HashSet, HashTable};
use rustc_hash::FxBuildHasher;

use super::{
    sites::{Resident, SiteKey},
    threads::ThreadSums,
};
use crate::model::{ProbeId, ProcessId, ThreadId};

/// A map that tells how much memory it takes.
pub(super) type Map<K, V> = HashMap<K, V, FxBuildHasher>;

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
    /// What it has done.
    pub(super) sums: ThreadSums,
}

/// What is known of a process while it runs.
#[derive(Debug)]
pub(super) struct ProcessState {
    pub(super) id: ProcessId,
    /// Places of its live blocks, by their addresses.
    pub(super) live: HashTable<u32>,
    /// Their sums.
    pub(super) resident: Resident,
    /// Indices of its threads.
    pub(super) threads: Map<ThreadId, u32>,
    pub(super) in_flight: Map<ThreadId, InFlight>,
    /// Addresses of blocks that were live in its parent when it was forked, and that it has not
    /// freed yet.
    pub(super) inherited: HashSet<u64, FxBuildHasher>,
    /// What was live then is live for good.
    pub(super) has_ended: bool,
}

impl ProcessState {
    pub(super) fn new(id: ProcessId) -> Self {
        Self {
            id,
            live: HashTable::new(),
            resident: Resident::default(),
            threads: Map::default(),
            in_flight: Map::default(),
            inherited: HashSet::default(),
            has_ended: false,
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.live.allocation_size()
            + self.threads.allocation_size()
            + self.in_flight.allocation_size()
            + self.inherited.allocation_size()
    }
}

/// Who an event is of: a thread of a process, and where both are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct By {
    pub(super) process: ProcessId,
    pub(super) thread: ThreadId,
    pub(super) process_index: usize,
    pub(super) thread_index: usize,
}

/// All processes and threads.
#[derive(Debug, Default)]
pub(super) struct Actors {
    pub(super) processes: Vec<ProcessState>,
    process_indices: Map<ProcessId, u32>,
    pub(super) threads: Vec<Thread>,
    vacant_threads: Vec<u32>,
    /// Who the last event was of: mostly the next one is too.
    last: Option<By>,
}

impl Actors {
    /// Finds a thread; it begins if it is not known.
    #[inline]
    pub(super) fn by(&mut self, process: ProcessId, thread: ThreadId) -> By {
        match self.last {
            Some(last) if last.process == process && last.thread == thread => last,
            _ => self.find(process, thread),
        }
    }

    fn find(&mut self, process: ProcessId, thread: ThreadId) -> By {
        let process_index = match self.last {
            Some(last) if last.process == process => last.process_index,
            _ => self.process_index(process),
        };
        let (threads, vacant) = (&mut self.threads, &mut self.vacant_threads);
        let known = &mut self.processes[process_index].threads;
        let thread_index = *known.entry(thread).or_insert_with(|| {
            vacant.pop().unwrap_or_else(|| {
                threads.push(Thread::default());
                (threads.len() - 1) as u32
            })
        });
        let by = By { process, thread, process_index, thread_index: thread_index as usize };
        self.last = Some(by);
        by
    }

    pub(super) fn process_index(&mut self, process: ProcessId) -> usize {
        let processes = &mut self.processes;
        *self.process_indices.entry(process).or_insert_with(|| {
            processes.push(ProcessState::new(process));
            (processes.len() - 1) as u32
        }) as usize
    }

    /// A process, if it is known.
    pub(super) fn process(&self, process: ProcessId) -> Option<&ProcessState> {
        self.processes.get(*self.process_indices.get(&process)? as usize)
    }

    /// The same, to be changed.
    pub(super) fn process_mut(&mut self, process: ProcessId) -> Option<&mut ProcessState> {
        let index = *self.process_indices.get(&process)?;
        self.processes.get_mut(index as usize)
    }

    /// Forgets a thread; gives what was known of it.
    pub(super) fn end_thread(&mut self, process: ProcessId, thread: ThreadId) -> Option<Thread> {
        self.last = None;
        let state = self.process_mut(process)?;
        state.in_flight.remove(&thread);
        let index = state.threads.remove(&thread)?;
        self.vacant_threads.push(index);
        self.threads.get_mut(index as usize).map(std::mem::take)
    }

    pub(super) fn held_bytes(&self) -> usize {
        let processes: usize = self.processes.iter().map(ProcessState::held_bytes).sum();
        processes
            + self.processes.capacity() * size_of::<ProcessState>()
            + self.process_indices.allocation_size()
            + self.threads.capacity() * size_of::<Thread>()
            + self.vacant_threads.capacity() * size_of::<u32>()
    }
}

/// Fields that allocation and reallocation share.
#[derive(Clone, Copy)]
pub(super) struct Begin {
    pub(super) by: By,
    pub(super) key: SiteKey,
    pub(super) time_ns: u64,
    pub(super) address_avma: u64,
    pub(super) size_bytes: u64,
    pub(super) interval_bytes: u64,
    pub(super) probe: ProbeId,
}
