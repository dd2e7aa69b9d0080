//! What the collector tells the eBPF programs, and what they count for it.

/// Most processes traced at once: entries of the map of [`Target`]s.
pub const MAX_TARGETS: u32 = 1024;

/// Control block of one traced process, written by the collector only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// 1 while calls are recorded. Set once all probes are in place, so that no
    /// block is seen to begin whose end would be missed.
    pub enabled: u32,
    /// Zero.
    pub padding: u32,
    /// The dynamic loader's `_r_debug` (glibc, `<link.h>`); 0 if it is not known.
    pub loader_state_avma: u64,
}
const _: () = assert!(size_of::<Target>() == 16);

/// State of the reader of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// 1 while the reader sleeps: only then is a wake-up worth its price.
    pub waiting: u32,
    /// Unread bytes in the ring from which a sleeping reader is woken.
    pub watermark_bytes: u32,
    /// Unread bytes in the ring from which no stacks are copied into it.
    pub copy_limit_bytes: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Consumer>() == 16);

/// Position of an argument in a function call, 0 to 5, or [`NO_ARGUMENT`].
pub type ArgumentIndex = u8;
/// The function has no such argument.
pub const NO_ARGUMENT: ArgumentIndex = 0xf;

/// What a probe needs to know about the function it sits on. It travels in the
/// probe's 64-bit attach cookie, so that a hit needs no look-up:
///
/// ```text
/// bits  0..16  probe id              bits 16..20  argument: size
/// bits 20..24  argument: count       bits 24..28  argument: block
/// bits 28..32  argument: result slot bits 32..48  target
/// ```
///
/// No cookie is 0, because probe ids start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

/// Which arguments of an allocator function mean what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Requested size in bytes.
    pub size: ArgumentIndex,
    /// Multiplies the size.
    pub count: ArgumentIndex,
    /// An existing block: what is reallocated or freed.
    pub block: ArgumentIndex,
    /// Points to where the call stores its result, the function itself
    /// returning 0 on success (`posix_memalign`).
    pub result_slot: ArgumentIndex,
}

impl Cookie {
    /// Packs a cookie.
    #[must_use]
    pub const fn new(target: u16, probe: u16, arguments: Arguments) -> Self {
        Self(
            probe as u64
                | (arguments.size as u64 & 0xf) << 16
                | (arguments.count as u64 & 0xf) << 20
                | (arguments.block as u64 & 0xf) << 24
                | (arguments.result_slot as u64 & 0xf) << 28
                | (target as u64) << 32,
        )
    }

    /// Id of the probe, unique within a target, never 0.
    #[must_use]
    #[inline(always)]
    pub const fn probe(self) -> u16 {
        self.0 as u16
    }

    /// Which arguments mean what.
    #[must_use]
    #[inline(always)]
    pub const fn arguments(self) -> Arguments {
        Arguments {
            size: (self.0 >> 16) as u8 & 0xf,
            count: (self.0 >> 20) as u8 & 0xf,
            block: (self.0 >> 24) as u8 & 0xf,
            result_slot: (self.0 >> 28) as u8 & 0xf,
        }
    }

    /// Index of the traced process.
    #[must_use]
    #[inline(always)]
    pub const fn target(self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// Counters kept by the eBPF programs, one per CPU each. Append only.
///
/// Law: [`COUNTER_ATTEMPTED`] = [`COUNTER_RECORDED`] + every counter from
/// [`COUNTER_FIRST_LOSS`] on.
pub const COUNTER_ATTEMPTED: u32 = 0;
/// Records that the ring buffer took.
pub const COUNTER_RECORDED: u32 = 1;
/// Probe hits inside another allocator call, which are no events.
pub const COUNTER_NESTED: u32 = 2;
/// Hits of any probe while recording was on.
pub const COUNTER_HITS: u32 = 3;
/// First counter of a cause of loss.
pub const COUNTER_FIRST_LOSS: u32 = 4;
/// No room in the ring buffer for an allocation.
pub const COUNTER_LOST_ALLOCATION: u32 = 4;
/// No room in the ring buffer for a free.
pub const COUNTER_LOST_FREE: u32 = 5;
/// No room in the ring buffer for the begin or end of a reallocation.
pub const COUNTER_LOST_REALLOCATION: u32 = 6;
/// No room in the ring buffer for the frames of a stack, or its copy; frames are sent
/// again when next seen.
pub const COUNTER_LOST_STACK: u32 = 7;
/// No room in the ring buffer for an exec, thread exit or change of code.
pub const COUNTER_LOST_PROCESS: u32 = 8;
/// The table of threads is full: the call cannot be followed to its return.
pub const COUNTER_THREAD_TABLE_FULL: u32 = 9;
/// A call was entered and its return never seen (longjmp, thread killed inside).
pub const COUNTER_RETURN_NOT_SEEN: u32 = 10;
/// The result of a call could not be read from the target's memory.
pub const COUNTER_RESULT_UNREADABLE: u32 = 11;
/// How many counters there are.
pub const COUNTER_COUNT: u32 = 12;

/// Words read at once from a target's stack.
pub const WINDOW_WORDS: usize = 64;

/// Words of the stack that a [`WalkMemo`] can hold.
pub const MEMO_WORDS: usize = 128;
/// Words of the stack, from its end, among which they are.
pub const MEMO_STACK_WORDS: usize = 256;

/// What the last walk began with, what it read of the stack, and what came of it.
///
/// A step depends on the frame it begins at, on the tables, and on the words of the stack that
/// it reads; so a walk that begins as this one, with the same tables, and finds the same words, ends
/// as this one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WalkMemo {
    /// Where the walk began: program counter, stack pointer, `rbp` and `rbx`.
    pub begin: [u64; 4],
    /// The space word of its tables, and the start value of its identity.
    pub tables: [u64; 2],
    /// How many words it read; 0 if they were not noted.
    pub word_count: u64,
    /// Their places, one or the other.
    pub place_bits: u64,
    /// Not 0 if it looked at more than is noted here.
    pub spoilt: u64,
    /// Of the walk, at its end.
    pub hash: u64,
    /// The same.
    pub frame_count: u64,
    /// The same.
    pub flags: u64,
    /// The same.
    pub end_sp_avma: u64,
    /// When its tables were read, `CLOCK_MONOTONIC`.
    pub tables_read_ns: u64,
    /// The first frame, as noted.
    pub first_frame_avma: u64,
    /// Which words of the stack they are, from the stack pointer at the begin.
    pub places: [u64; MEMO_WORDS],
    /// The words.
    pub values: [u64; MEMO_WORDS],
    /// Room for the stack as it is now.
    pub stack: [u64; MEMO_STACK_WORDS],
}

/// Per thread: what was seen at the entry of the outermost allocator call, and
/// room for walking its stack. The walk may not use the BPF stack (512 bytes) nor
/// per-CPU memory, because uprobe programs can be preempted by each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ThreadState {
    /// Cookie of the outermost call under way, 0 if there is none.
    pub cookie: u64,
    /// Stack pointer at its entry, where its return address lies.
    pub sp_avma: u64,
    /// Requested size.
    pub size_bytes: u64,
    /// Existing block given to a reallocation, else 0.
    pub block_avma: u64,
    /// Where the call stores its result, else 0.
    pub result_slot_avma: u64,
    /// Probe id of a second function entered at the same stack pointer (a tail
    /// call), else 0. See `classify_entry` in the eBPF crate.
    pub tail_probe: u64,
    /// The block freed last, if nothing was allocated since, else 0.
    pub freed_block_avma: u64,
    /// Probe id of that free.
    pub freed_probe: u64,
    /// Identity of the stack sent last, which is surely still known to be sent.
    pub last_stack: u64,
    /// Where in the target's stack `window` was read; 0 if it was not.
    pub window_avma: u64,
    /// The walk up its stack.
    pub walk: crate::unwind::Walk,
    /// A part of the target's stack, because reading much at once is not dearer than
    /// reading one word.
    pub window: [u64; WINDOW_WORDS],
    /// The record of the stack, laid out as it is sent.
    pub stack: StackRecord,
    /// The walk before.
    pub memo: WalkMemo,
}

/// [`crate::record::StackHeader`] with room for all frames.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StackRecord {
    /// What is sent before the frames.
    pub header: crate::record::StackHeader,
    /// Return addresses, innermost first.
    pub frames_avma: [u64; crate::record::MAX_FRAMES],
}
const _: () = assert!(size_of::<StackRecord>() == 40 + 8 * crate::record::MAX_FRAMES);
const _: () = assert!(
    size_of::<ThreadState>()
        == 208 + 8 * WINDOW_WORDS + size_of::<StackRecord>() + size_of::<WalkMemo>()
);

/// What one CPU counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCounters {
    /// Indexed by the `COUNTER_` constants.
    pub values: [u64; COUNTER_COUNT as usize],
    /// Losses that no marker in the stream has told yet.
    pub untold_losses: u64,
    /// Time of the first of them, `CLOCK_MONOTONIC`.
    pub first_untold_loss_ns: u64,
}
const _: () = assert!(size_of::<CpuCounters>() == 8 * (COUNTER_COUNT as usize + 2));
