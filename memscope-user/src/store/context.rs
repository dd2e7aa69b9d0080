//! What both sides know while a chunk is written and read. It begins anew with each
//! chunk, so that a chunk can be read by itself.

use crate::model::{ProbeId, ProcessId, ThreadId};

/// Lowest three bits of a tag: what the item is.
pub(super) const KIND_MASK: u8 = 7;
pub(super) const ALLOCATION: u8 = 0;
/// By the program.
pub(super) const FREE: u8 = 1;
/// By code of the allocator's own module.
pub(super) const ALLOCATOR_FREE: u8 = 2;
pub(super) const REALLOCATION_BEGIN: u8 = 3;
/// Of the block that the thread's last reallocation was entered with.
pub(super) const REALLOCATION_END: u8 = 4;
/// Of another block.
pub(super) const OTHER_REALLOCATION_END: u8 = 5;
/// The other bits of the tag say what.
pub(super) const OTHER: u8 = 6;

/// The thread is that of the event before.
pub(super) const SAME_THREAD: u8 = 1 << 3;
/// Where the address is.
pub(super) const ADDRESS_SHIFT: u32 = 4;
pub(super) const ADDRESS_MASK: u8 = 3 << ADDRESS_SHIFT;
/// In its column, as it was not seen before in this chunk.
pub(super) const ADDRESS_NEW: u8 = 0;
/// As many addresses ago as the column of distances says.
pub(super) const ADDRESS_FAR: u8 = 1 << ADDRESS_SHIFT;
/// It is the last address.
pub(super) const ADDRESS_LAST: u8 = 2 << ADDRESS_SHIFT;
/// It is the last address but one.
pub(super) const ADDRESS_BEFORE_LAST: u8 = 3 << ADDRESS_SHIFT;
/// The size is that which the stack had last.
pub(super) const SAME_SIZE: u8 = 1 << 6;
/// The probe is that which the stack had last.
pub(super) const SAME_PROBE: u8 = 1 << 7;

/// Of what has no size: the function is that of the last event with this bit or the next.
pub(super) const SAME_ENDING: u8 = 1 << 6;
/// The same: it is in the column of others. Without both it is not known.
pub(super) const NEW_ENDING: u8 = 1 << 7;

/// The next of the definitions.
pub(super) const OTHER_ITEM: u8 = OTHER;
pub(super) const OTHER_THREAD_EXIT: u8 = OTHER | 1 << 3;
pub(super) const OTHER_LOSS: u8 = OTHER | 2 << 3;
/// No item: the sampling interval of the blocks that follow.
pub(super) const OTHER_INTERVAL: u8 = OTHER | 3 << 3;
pub(super) const OTHER_PAGE_FAULT: u8 = OTHER | 4 << 3;
/// One that had to wait.
pub(super) const OTHER_MAJOR_FAULT: u8 = OTHER | 5 << 3;
pub(super) const OTHER_MAPPING: u8 = OTHER | 6 << 3;
pub(super) const OTHER_UNMAPPING: u8 = OTHER | 7 << 3;
pub(super) const OTHER_REMAPPING: u8 = OTHER | 8 << 3;

/// In the column of others: who has wanted a mapping; an allocator's probe comes behind this.
pub(super) const BY_PROGRAM: u64 = 0;
pub(super) const BY_UNKNOWN: u64 = 1;
pub(super) const BY_ALLOCATOR: u64 = 2;

/// In the column of addresses: the address itself follows. Of other numbers half is a
/// zigzag-encoded difference to the last address: of even ones in units, of odd ones,
/// counted from [`IN_BYTES`], in bytes.
pub(super) const ABSOLUTE: u64 = 1;
pub(super) const IN_BYTES: u64 = 3;
/// What differences of addresses are given in, if they are a multiple of it.
pub(super) const ADDRESS_UNIT_BYTES: i64 = 16;

/// Stacks whose ids agree in their lowest bits share a place.
const STACK_PLACES: usize = 1024;

/// A thread of a process in this chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thread {
    pub(super) process: ProcessId,
    pub(super) thread: ThreadId,
    /// Block with which it last entered a reallocation in this chunk, or 0.
    pub(super) reallocating_avma: u64,
}

/// What a stack's last allocation was like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habit {
    pub(super) size_bytes: u64,
    pub(super) probe: u32,
}

/// All that is remembered within a chunk.
#[derive(Clone, Debug)]
pub(super) struct Context {
    /// Time of the event before.
    pub(super) time_ns: u64,
    pub(super) interval_bytes: u64,
    /// In the order in which they first come.
    pub(super) threads: Vec<Thread>,
    /// Which of them the event before was of.
    pub(super) current: usize,
    /// Function of the last free, or the last begin of a reallocation, of which it is known.
    pub(super) ending: Option<ProbeId>,
    habits: [Habit; STACK_PLACES],
}

impl Default for Context {
    fn default() -> Self {
        Self {
            time_ns: 0,
            interval_bytes: 0,
            threads: Vec::new(),
            current: 0,
            ending: None,
            habits: [Habit::default(); STACK_PLACES],
        }
    }
}

impl Context {
    /// As at the beginning of a chunk; keeps its memory.
    pub(super) fn clear(&mut self) {
        let Self { time_ns, interval_bytes, threads, current, ending, habits } = self;
        (*time_ns, *interval_bytes, *current, *ending) = (0, 0, 0, None);
        threads.clear();
        *habits = [Habit::default(); STACK_PLACES];
    }

    pub(super) fn habit(&mut self, stack: u32) -> &mut Habit {
        &mut self.habits[stack as usize % STACK_PLACES]
    }
}
