//! What the collector tells the eBPF programs, and what they count for it.

mod probe;

pub use probe::{
    ArgumentIndex, Arguments, Cookie, FIRST_KEPT, InnerCalls, MAX_INNER_CALLS, NO_ARGUMENT,
    ProbeSurroundings,
};

use crate::record::RESIDENT_KINDS;

/// Most processes of a trace: entries of the map of [`Target`]s. No index is given twice, and 16
/// bits have room for no more.
pub const MAX_TARGETS: u32 = (1 << 16) - 1;

/// Of the value that a process id leads to: the index of its target.
pub const PROCESS_TARGET: u32 = 0xffff;
/// The same: it runs in the memory of that target, which is its parent (vfork).
pub const PROCESS_BORROWS: u32 = 1 << 16;

/// Where the map of given numbers has that of targets, which the collector gives as well.
pub const NUMBER_OF_TARGETS: u32 = 3;

/// Control block of one traced process, written by the collector; for a process that the eBPF
/// side begins to follow by itself, a copy of its parent's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// 1 while calls are recorded. Set once all probes are in place, so that no
    /// block is seen to begin whose end would be missed.
    pub enabled: u32,
    /// 1 if all blocks come from one module: then a call of a function that calls no other
    /// allocator function need not be followed to its return for what runs inside.
    pub single_allocator: u32,
    /// The dynamic loader's `_r_debug` (glibc, `<link.h>`); 0 if it is not known.
    pub loader_state_avma: u64,
    /// 1 if it may be stopped: somebody watches that it goes on.
    pub may_stop: u32,
    /// 1 once recording has ended for good: what happens to the process is not told any more.
    pub is_over: u32,
}
const _: () = assert!(size_of::<Target>() == 24);

/// Control groups that can be asked for.
pub const MAX_GROUPS: usize = 16;

/// A control group (version 2) whose processes are to be traced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its number; 0: none.
    pub id: u64,
    /// How many groups are above it.
    pub level: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Group>() == 16);

/// Length of a thread's name (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// What a program's name means when it is begun: it is to be traced.
pub const COMM_SELECTED: u32 = 1;
/// The same: it is not, whatever else says so.
pub const COMM_EXCLUDED: u32 = 2;

/// Of [`Settings::selects`]: programs by their names.
pub const SELECT_COMM: u32 = 1;
/// The same: processes of control groups.
pub const SELECT_GROUP: u32 = 2;
/// The same: all.
pub const SELECT_ALL: u32 = 4;
/// The same: some names are excluded.
pub const EXCLUDE_COMM: u32 = 8;

/// Where the running kernel keeps what is asked of its tasks: byte offsets of fields, from its
/// BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskOffsets {
    /// `task_struct.tgid`.
    pub tgid: u32,
    /// `task_struct.mm`.
    pub memory: u32,
    /// `task_struct.exit_code`.
    pub exit_code: u32,
    /// `task_struct.group_leader`.
    pub leader: u32,
    /// `task_struct.signal`.
    pub signal: u32,
    /// `signal_struct.live`: threads that have not exited.
    pub live: u32,
    /// `signal_struct.flags`.
    pub flags: u32,
    /// `signal_struct.group_exit_code`.
    pub group_exit_code: u32,
    /// `task_struct.thread_info.status`.
    pub system_call_status: u32,
    /// 1 if the others are known.
    pub known: u32,
}
const _: () = assert!(size_of::<TaskOffsets>() == 40);

/// State of the reader of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// 1 while the reader sleeps: only then is a wake-up worth its price.
    pub waiting: u32,
    /// Unread bytes in the ring from which a sleeping reader is woken.
    pub watermark_bytes: u32,
    /// Unread bytes in the ring from which no stacks are copied into it; 0: never.
    pub copy_limit_bytes: u32,
    /// Unread slots of one CPU from which a sleeping reader is woken.
    pub watermark_slots: u32,
}
const _: () = assert!(size_of::<Consumer>() == 16);

/// What stays the same through a trace, a constant of the loaded programs: what is not asked
/// for costs nothing, as the verifier cuts it out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// 1 if only the caller is noted, and no stack walked.
    pub caller_only: u32,
    /// Each CPU has this many slots, as a power of two.
    pub slots_log2: u32,
    /// 1 if not every block is recorded; see [`Sampling`].
    pub samples: u32,
    /// Where random numbers begin.
    pub seed: u32,
    /// 1 if a target is stopped before the collector falls too far behind it.
    pub pauses: u32,
    /// 1 if what hits cost is counted; see [`CostCounters`].
    pub counts_cost: u32,
    /// 1 if children of traced processes are traced.
    pub follows: u32,
    /// What programs are traced from their exec on: `SELECT_` and `EXCLUDE_` bits.
    pub selects: u32,
}
const _: () = assert!(size_of::<Settings>() == 32);

/// What the programs of probes have cost, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostCounters {
    /// How many times such a program ran: hits of probes.
    pub runs: u64,
    /// Of these, those at a function's return.
    pub returns: u64,
    /// Of these, those at an instruction that the kernel steps through.
    pub stepped: u64,
    /// Of these, those that were timed.
    pub timed_runs: u64,
    /// How long they took, each at most [`MAX_TIMED_NS`].
    pub timed_ns: u64,
    /// Zero.
    pub zero: u64,
    /// The instruction at which the last such program ran, or where the function it ran at the
    /// return of was going to.
    pub hit_avma: u64,
    /// Samples of the targets' processor time: in their work.
    pub work_samples: u64,
    /// The same: in probes.
    pub probe_samples: u64,
}
const _: () = assert!(size_of::<CostCounters>() == 72);

/// One of so many runs is timed, as a power of two.
pub const TIMED_RUNS_LOG2: u32 = 6;

/// A run that took longer was interrupted, and what interrupted it is no cost of it.
pub const MAX_TIMED_NS: u64 = 65_536;

/// Allocations for which there was no room, of one stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OverflowKey {
    /// Which target.
    pub target: u16,
    /// Which image of it.
    pub image: u16,
    /// Number of the stack.
    pub stack: u32,
}
const _: () = assert!(size_of::<OverflowKey>() == 8);

/// How many these are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overflow {
    /// Blocks.
    pub allocations: u64,
    /// Sum of their sizes.
    pub bytes: u64,
}
const _: () = assert!(size_of::<Overflow>() == 16);

/// How blocks are drawn. Of the bytes that a thread asks for, one is drawn every
/// `interval_bytes` in the mean, the distances being exponentially distributed; a block is
/// recorded if one of its bytes was drawn. So whether it is, does not depend on what came
/// before, and a block of `s` bytes is recorded with the probability `1 - exp(-s / interval)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// At least 1.
    pub interval_bytes: u64,
    /// Raised with each change, after it: then threads draw a new distance.
    pub generation: u64,
    /// The stretch of time in which the targets are observed now, if they are not all the time:
    /// blocks that were drawn in another one are not known any more.
    pub window: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Sampling>() == 24);

/// Steps of [`Gaps`].
pub const GAP_STEPS: usize = 4096;

/// Quantiles of the exponential distribution with mean 1, in units of 2^-16: value `i` is
/// exceeded with the probability `1 - i / GAP_STEPS`. The last one is such that the mean of
/// the values between it and the one before is right.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gaps {
    /// One more than there are steps.
    pub quantiles: [u32; GAP_STEPS + 1],
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Gaps>() == 4 * GAP_STEPS + 8);

/// Classes of sizes: class `n` has those of `n` bits, 0 only 0.
pub const SIZE_CLASSES: usize = 65;

/// What is counted exactly while blocks are sampled, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactCounters {
    /// Calls that asked for a block, by class of their size.
    pub calls: [u64; SIZE_CLASSES],
    /// Sum of the sizes they asked for.
    pub bytes: [u64; SIZE_CLASSES],
    /// Frees of blocks that were not drawn, or not seen to begin.
    pub frees_dropped: u64,
    /// Zero.
    pub padding: u64,
}
const _: () = assert!(size_of::<ExactCounters>() == 8 * (2 * SIZE_CLASSES + 2));

/// Of a call: its new block is to be recorded.
pub const FOLLOW_NEW: u64 = 1;
/// Of a call: the block it was given was recorded, and its end is to be.
pub const FOLLOW_OLD: u64 = 2;
/// Of a call: neither; it is followed for what runs inside.
pub const FOLLOW_NOTHING: u64 = 0;

/// Stands in the object for the kernel's `bpf_session_is_return`, whose number only the running
/// kernel tells. No helper has this number.
pub const SESSION_IS_RETURN: i32 = 0x7fff_0001;

/// A small record and its place in the order of its CPU: its number there plus 1, written
/// last. So a slot holds what the reader expects, or what it has read a lap ago.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// [`crate::record::SmallAllocation`] or [`crate::record::SmallFree`], then 0.
    pub words: [u64; 3],
    /// Number of the record among those of its CPU, plus 1.
    pub sequence: u64,
}
const _: () = assert!(size_of::<Slot>() == 32);

/// The positions of a CPU's slots. A cache line for each side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuRing {
    /// How many slots were taken.
    pub head: u64,
    /// 1 if this CPU has lost records since it has last told of it.
    pub has_untold_losses: u64,
    /// Zero.
    pub padding: [u64; 6],
    /// How many were read, as the collector says.
    pub tail: u64,
    /// Zero.
    pub padding_after: [u64; 7],
}
const _: () = assert!(size_of::<CpuRing>() == 128);

/// Slots that are left free, for tasks that have seen room and been interrupted before they
/// took it.
pub const SPARE_SLOTS: u64 = 16;

/// Copies of stacks that can be under way on a CPU: one that was interrupted, and another.
pub const COPIES_PER_CPU: u32 = 2;

/// Words of a bit for each two allocators, see [`allocator_call_bit`].
pub const ALLOCATOR_CALL_WORDS: u32 = 1 << 10;

/// Of what is known of allocators whose functions call those of others: which word it is in, and
/// which bit it is, whether an outer one was seen to call an inner one.
#[must_use]
#[inline(always)]
pub const fn allocator_call_bit(outer: u8, inner: u8) -> (u32, u64) {
    (((outer as u32) << 2) | (inner as u32 >> 6), 1 << (inner & 63))
}

/// Cookies that hits find by their address: by where in its page the probed instruction is. Where
/// no probe is, there is 0, and where there are several, [`UNKNOWN_COOKIE`].
pub const KNOWN_COOKIES: u32 = 1 << 12;

/// Stands for several probes that an address does not tell apart.
pub const UNKNOWN_COOKIE: Cookie = Cookie(1 << 51);

/// Where among the known cookies the one is, if any, of a probed instruction at this place of a
/// file, or at this address: in memory it lies in its page where it does in the file.
#[must_use]
#[inline(always)]
pub const fn known_cookie_index(offset_or_avma: u64) -> u32 {
    offset_or_avma as u32 % KNOWN_COOKIES
}

/// Counters kept by the eBPF programs, one per CPU each. Append only.
///
/// Law: what was attempted, the sum of [`COUNTER_ATTEMPTED`] and of the heads of all
/// [`CpuRing`]s, is what the collector received and every counter from
/// [`COUNTER_FIRST_LOSS`] on.
pub const COUNTER_ATTEMPTED: u32 = 0;
/// Probe hits inside another allocator call, which are no events.
pub const COUNTER_NESTED: u32 = 1;
/// Calls that were recorded by two hits, at their begin and at their end: of most it is known before they return what they give, and
/// one is enough.
pub const COUNTER_HIT_TWICE: u32 = 2;
/// Hits where it would have been known what a call gives, of calls that went another way: they are hit again there. And those of
/// other functions' calls.
pub const COUNTER_PASSED_BY: u32 = 3;
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
/// No room to remember a block that was drawn: it is not recorded.
pub const COUNTER_SAMPLE_TABLE_FULL: u32 = 12;
/// No room in the ring buffer for a page fault.
pub const COUNTER_LOST_PAGE_FAULT: u32 = 13;
/// No room in the ring buffer for a change of what is mapped.
pub const COUNTER_LOST_MAPPING: u32 = 14;
/// How many counters there are.
pub const COUNTER_COUNT: u32 = 15;

/// Words read at once from a target's stack.
pub const WINDOW_WORDS: usize = 64;

/// Words of the stack that a [`WalkMemo`] can hold.
pub const MEMO_WORDS: usize = 256;
/// How much of the stack, from its end, is read at once, at least and at most. To read once costs as much as to
/// read half a thousand words more (`MEMO_GAP_WORDS`), if these are in the processor's caches: behind the
/// first functions of a program they are not, as it never looks there.
pub const TOP_WORDS: usize = 32;
/// See above.
pub const MAX_TOP_WORDS: usize = 3584;
/// How far from its end the return addresses are that tell walks apart which begin alike.
pub const CALLER_WORDS: u64 = 128;
/// Pieces of the stack beyond it in which words of a memo lie, at most.
pub const MEMO_WINDOWS: usize = 4;
/// From this distance on the next word is in another piece.
pub const MEMO_GAP_WORDS: usize = 448;
/// How long all that is together can be.
pub const MEMO_ROOM_WORDS: usize = 4096;
/// Functions whose callers tell walks apart that begin alike. The first one can be the allocator's.
pub const MEMO_CALLERS: usize = 5;

/// Walks that are remembered.
pub const MEMOS: u32 = 1 << 11;
/// Functions of which it is remembered where their return address lies.
pub const MEMO_SLOTS: u32 = 1 << 12;

/// [`WalkMemo::depends_on`]: on `rbp` as it was where the walk began.
pub const MEMO_BP: u64 = 1;
/// [`WalkMemo::depends_on`]: on `rbx` as it was there.
pub const MEMO_BX: u64 = 2;

/// [`WalkMemo::bp_state`]: `rbp` is what it was where the walk began …
pub const MEMO_BP_FIRST: u64 = 0;
/// … or was read from the stack, and nothing has depended on it yet …
pub const MEMO_BP_READ: u64 = 1;
/// … or something has, and the word is noted.
pub const MEMO_BP_NOTED: u64 = 2;

/// What a walk began with, what it depended on, and what came of it.
///
/// A step depends on the frame it begins at, on the tables, and on words of the stack; so a walk that begins
/// as this one, with the same tables, and finds the same words, ends as this one, whichever thread makes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WalkMemo {
    /// 1 while a thread uses it, which no other may do then.
    pub busy: u64,
    /// Where the walk began: program counter, stack pointer, the space word of its tables, and the start
    /// value of its identity.
    pub begin: [u64; 4],
    /// `rbp` and `rbx` there, for walks that depend on them.
    pub registers: [u64; 2],
    /// `MEMO_BP` and `MEMO_BX`.
    pub depends_on: u64,
    /// How many words it depended on; 0 if they were not noted.
    pub word_count: u64,
    /// How many words from the end of the stack on hold those that are near it.
    pub top_words: u64,
    /// In how many further pieces of the stack the others are.
    pub window_count: u64,
    /// Not 0 if it depended on more than is noted here: so often the place is passed over.
    pub spoilt: u64,
    /// The number of its stack.
    pub number: u64,
    /// While it is noted: what is known of `rbp`, where it lay, and its value.
    pub bp_state: u64,
    /// See above.
    pub bp_avma: u64,
    /// See above.
    pub bp: u64,
    /// The pieces.
    pub windows: [MemoWindow; MEMO_WINDOWS],
    /// Which words of the pieces they are.
    pub places: [u16; MEMO_WORDS],
    /// The words.
    pub values: [u64; MEMO_WORDS],
}

/// A piece of the stack.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoWindow {
    /// Where it lies.
    pub start_avma: u64,
    /// How many words come before it, in the pieces before.
    pub first: u64,
    /// How long it is.
    pub words: u64,
}

/// Room for the pieces of the stack as they are now.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoRoom {
    /// 1 while a thread uses it.
    pub busy: u64,
    /// The words; the second half is not used, but verifiers do not see that pieces end before it.
    pub words: [u64; 2 * MEMO_ROOM_WORDS],
}

/// Rooms, which processors share if there are more of them.
pub const MEMO_ROOMS: u32 = 64;

/// Threads with state at most: elements of the map of [`ThreadState`]s.
pub const MAX_THREADS: u32 = 1 << 16;

/// Per thread: what was seen at the entry of the outermost allocator call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// Which thread it is of, as the eBPF side knows it; 0: of none, and all else is 0.
    pub owner: u64,
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
    /// The block allocated last, until it is freed, else 0.
    pub allocated_block_avma: u64,
    /// The block freed last, if nothing was allocated since, else 0.
    pub freed_block_avma: u64,
    /// Cookie of that free.
    pub freed_cookie: u64,
    /// Stack pointer at its entry.
    pub freed_sp_avma: u64,
    /// Where it returns to.
    pub freed_return_avma: u64,
    /// Identity of the stack sent last.
    pub last_stack: u64,
    /// Its number.
    pub last_stack_number: u64,
    /// What small records call this thread; 0 if it has no number.
    pub number: u64,
    /// Of which image of the process it was given.
    pub numbered_image: u64,
    /// What of the outermost call is recorded: `FOLLOW_` bits.
    pub follow: u64,
    /// Mean distance of samples when its block was drawn.
    pub interval_bytes: u64,
    /// Bytes to be asked for until one is drawn.
    pub until_sample_bytes: u64,
    /// Of which generation of [`Sampling`] that is; 0 if of none.
    pub sampling_generation: u64,
    /// State of the thread's random numbers.
    pub random: u64,
    /// Which target it is of, plus 1; 0 if that is not known yet.
    pub target_plus_1: u64,
    /// The probed instruction of the outermost call that was entered last.
    pub entry_avma: u64,
    /// Pages that became resident, and that no page fault has told of yet.
    pub resident_pages: [u64; RESIDENT_KINDS],
    /// How many page faults the thread had had by then.
    pub faults_before: u64,
    /// Where the outermost call returns to, if an exception can leave it, else 0.
    pub return_avma: u64,
    /// Number of the stack that such a call was made from; 0 if nothing of it is recorded.
    pub stack: u64,
    /// When the thread has entered `mremap` last.
    pub remap_began_ns: u64,
    /// 1 if it has asked for blocks that were not drawn since the last one that was.
    pub allocated_since: u32,
    /// 1 if it ends: from now on the C library may free blocks again that it has freed already.
    pub ends: u32,
    /// Up to where its stack is read at once, see [`TOP_WORDS`].
    pub top_end_avma: u64,
}
/// Words of a [`ThreadState`].
pub const THREAD_WORDS: usize = 32;
const _: () = assert!(size_of::<ThreadState>() == 8 * THREAD_WORDS);

/// Room for walking a thread's stack. The walk may not use the BPF stack (512 bytes) nor
/// per-CPU memory, because uprobe programs can be preempted by each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WalkState {
    /// Where in the target's stack `window` was read; 0 if it was not.
    pub window_avma: u64,
    /// The walk up its stack.
    pub walk: crate::unwind::Walk,
    /// A part of the target's stack, because reading much at once is not dearer than
    /// reading one word.
    pub window: [u64; WINDOW_WORDS],
    /// The record of the stack, laid out as it is sent.
    pub stack: StackRecord,
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
const _: () = assert!(size_of::<WalkState>() == 144 + 8 * WINDOW_WORDS + size_of::<StackRecord>());

/// Where the running kernel keeps what it counts of a process's memory: byte offsets, from its BTF.
/// A counter is a sum, and what each CPU has yet to add to it (`struct percpu_counter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageOffsets {
    /// `task_struct.mm`
    pub task_memory: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.min_flt`
    pub task_minor_faults: u32,
    /// `task_struct.maj_flt`
    pub task_major_faults: u32,
    /// `mm_struct.rss_stat`, one counter for each kind.
    pub memory_counters: u32,
    /// From one counter to the next.
    pub counter_bytes: u32,
    /// `percpu_counter.count`
    pub counter_sum: u32,
    /// `percpu_counter.counters`
    pub counter_of_cpus: u32,
    /// The union in `bpf_array` that has `pptrs`.
    pub array_values: u32,
    /// When a CPU's part has become so much, it adds it (`percpu_counter_batch`).
    pub batch: u32,
    /// 1 if the others are known.
    pub known: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<PageOffsets>() == 48);

/// Counters of a process's memory (`NR_MM_COUNTERS`): files, anonymous, swapped out, shared.
pub const MEMORY_COUNTERS: usize = 4;

/// Processes whose counters are followed, at most.
pub const MAX_MEMORIES: u32 = 1 << 12;

/// What a CPU had yet to add to the counters of a process's memory, when it was looked at last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOnCpu {
    /// By counter.
    pub not_added: [i64; MEMORY_COUNTERS],
    /// 1 if they are known.
    pub known: u64,
}
const _: () = assert!(size_of::<MemoryOnCpu>() == 40);

/// The counters of a process's memory without what CPUs have yet to add.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySums {
    /// By counter.
    pub sums: [i64; MEMORY_COUNTERS],
}
const _: () = assert!(size_of::<MemorySums>() == 32);

/// What is known of a CPU where memory is followed, and what is counted on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCpu {
    /// Where the memory of this CPU begins: what is added to the address of something that each
    /// CPU has. 0 if it is not known.
    pub begin: u64,
    /// The address of this.
    pub own: u64,
    /// The address of its map.
    pub map: u64,
    /// Zero.
    pub padding: u64,
    /// Pages that became resident in no page fault.
    pub elsewhere_pages: [u64; RESIDENT_KINDS],
    /// Pages that were given back or taken away.
    pub gone_pages: [u64; RESIDENT_KINDS],
}
const _: () = assert!(size_of::<PageCpu>() == 80);

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
