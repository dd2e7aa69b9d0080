//! Every map: what it holds, how large it is, what happens when it is full.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_ARRAY},
    btf_maps::ArrayOfMaps,
    helpers::generated::bpf_map_lookup_elem,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf},
};
use memscope_common::{
    control::{
        ALLOCATOR_CALL_WORDS, COMM_BYTES, COPIES_PER_CPU, Consumer, CostCounters, CpuCounters,
        CpuRing, ExactCounters, Gaps, Group, KNOWN_COOKIES, MAX_GROUPS, MAX_MEMORIES, MAX_TARGETS,
        MAX_THREADS, MEMO_ROOMS, MEMO_SLOTS, MEMOS, MemoRoom, MemoryOnCpu, MemorySums, Overflow,
        OverflowKey, PageCpu, ProbeSurroundings, Sampling, Slot, Target, ThreadState, WalkMemo,
        WalkState,
    },
    record::COPIED_PLACES,
    unwind::{Chunk, Epoch, MAX_CHUNKS, MAX_MAPPINGS, Mapping, RuleCache, Rules, SpaceWord},
};

use crate::copy::NewCopy;

/// All records but the small ones. The loader sets the size. Full: the record is lost and counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(16 * 1024 * 1024, 0);

/// Small records, of each CPU its own. The loader sets how many. Full: the record is lost and
/// counted.
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::with_max_entries(1 << 10, BPF_F_MMAPABLE);

/// How far the slots of each CPU are taken and read. The loader sets how many CPUs there are.
#[map]
pub(crate) static CPU_RINGS: Array<CpuRing> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What is counted, per CPU. One element.
#[map]
pub(crate) static COUNTERS: PerCpuArray<CpuCounters> = PerCpuArray::with_max_entries(1, 0);

/// Control blocks of the traced processes, by target index.
#[map]
pub(crate) static TARGETS: Array<Target> = Array::with_max_entries(MAX_TARGETS, BPF_F_MMAPABLE);

/// Control block of a process that begins to be traced as it executes a program. One element.
#[map]
pub(crate) static NEW_TARGET: Array<Target> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Names of programs, and what they mean: `COMM_` constants. The collector sees to it that they
/// fit.
#[map]
pub(crate) static COMMS: HashMap<[u8; COMM_BYTES], u32> = HashMap::with_max_entries(256, 0);

/// Control groups whose processes are to be traced.
#[map]
pub(crate) static GROUPS: Array<Group> = Array::with_max_entries(MAX_GROUPS as u32, 0);

/// What has changed in each target's address space; written here only, so that no
/// change is overwritten by the collector.
#[map]
pub(crate) static EPOCHS: Array<Epoch> = Array::with_max_entries(MAX_TARGETS, 0);

/// By process id, the target's index and the `PROCESS_` bits. Full: further processes are not
/// traced, and counted.
#[map]
pub(crate) static PROCESSES: HashMap<u32, u32> =
    HashMap::with_max_entries(MAX_TARGETS, BPF_F_NO_PREALLOC);

/// Cookies that need not be asked for, by place in the page; see `hit`.
#[map]
pub(crate) static COOKIES: Array<u64> = Array::with_max_entries(KNOWN_COOKIES, 0);

/// Which allocators were seen to call which; see `allocator_call_bit`.
#[map]
pub(crate) static ALLOCATOR_CALLS: Array<u64> = Array::with_max_entries(ALLOCATOR_CALL_WORDS, 0);

/// State of the reader. One element.
#[map]
pub(crate) static CONSUMER: Array<Consumer> = Array::with_max_entries(1, 0);

/// State per thread, made at its first call and zeroed at its exit; see `threads` for which
/// it is. An array, as those the kernel finds without a call. Full: calls of further threads are
/// lost and counted.
#[map]
pub(crate) static THREADS: Array<ThreadState> =
    Array::with_max_entries(MAX_THREADS, BPF_F_MMAPABLE);

/// Places of the threads that are not at their first one. Full: as [`THREADS`].
#[map]
pub(crate) static MOVED_THREADS: HashMap<u64, u32> =
    HashMap::with_max_entries(MAX_THREADS, BPF_F_NO_PREALLOC);

/// What the stacks of threads are walked with, by the owner of their state. Full: the stacks of
/// further threads are lost and counted.
#[map]
pub(crate) static WALKS: HashMap<u64, WalkState> =
    HashMap::with_max_entries(MAX_THREADS, BPF_F_NO_PREALLOC);

/// A zeroed [`WalkState`], too large for the BPF stack. One element.
#[map]
pub(crate) static NEW_WALK: Array<WalkState> = Array::with_max_entries(1, 0);

/// Walks that were made before; see `memo`. One that comes to the place of another replaces it. Behind them those that nobody
/// reads.
#[map]
pub(crate) static WALK_MEMOS: Array<WalkMemo> = Array::with_max_entries(MEMOS + MEMO_ROOMS, 0);

/// Which one of two [`WALK_MEMOS`] was used last.
#[map]
pub(crate) static MEMO_RECENT: Array<u64> = Array::with_max_entries(MEMOS / 2, 0);

/// For places in functions, how far from the stack pointer their return addresses lie; see `memo`.
#[map]
pub(crate) static MEMO_SLOT: Array<u64> = Array::with_max_entries(MEMO_SLOTS, 0);

/// Where the stack is read into that is compared with a memo.
#[map]
pub(crate) static MEMO_ROOM: Array<MemoRoom> = Array::with_max_entries(MEMO_ROOMS, 0);

/// Stacks that have a number, in groups of [`SENT_GROUP_WORDS`]; see `sent`. A full group
/// forgets one of its stacks, which gets another number when next seen. One element.
#[map]
pub(crate) static SENT_STACKS: Array<SentStacks> = Array::with_max_entries(1, 0);

/// How many words [`SENT_STACKS`] has: 2 MiB.
pub(crate) const SENT_WORDS: usize = 1 << 18;
/// Places a stack can be in.
pub(crate) const SENT_GROUP_WORDS: usize = 4;

/// Value of [`SENT_STACKS`].
#[repr(C)]
pub(crate) struct SentStacks {
    pub(crate) words: [u64; SENT_WORDS],
}

/// How many numbers were given, by the `NUMBER_OF_` constants.
#[map]
pub(crate) static NUMBERS: Array<u64> = Array::with_max_entries(5, BPF_F_MMAPABLE);

/// Stacks that can come again.
pub(crate) const NUMBER_OF_STACKS: u32 = 0;
/// Stacks that are used once.
pub(crate) const NUMBER_OF_COPIES: u32 = 1;
/// Threads.
pub(crate) const NUMBER_OF_THREADS: u32 = 2;
/// Targets; also given by the collector.
pub(crate) const NUMBER_OF_TARGETS: u32 = memscope_common::control::NUMBER_OF_TARGETS;
/// Threads that have begun to draw samples.
pub(crate) const NUMBER_OF_SEEDS: u32 = 4;

/// Allocations that found no room, by stack. Full: they are counted as lost only.
#[map]
pub(crate) static OVERFLOWS: HashMap<OverflowKey, Overflow> =
    HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// Targets that were stopped since the collector looked here last: 1.
#[map]
pub(crate) static PAUSED: Array<u64> = Array::with_max_entries(MAX_TARGETS, BPF_F_MMAPABLE);

/// How blocks are drawn. One element.
#[map]
pub(crate) static SAMPLING: Array<Sampling> = Array::with_max_entries(1, 0);

/// What distances between samples are made of. One element.
#[map]
pub(crate) static GAPS: Array<Gaps> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What is counted exactly although blocks are sampled, per CPU. One element.
#[map]
pub(crate) static EXACT: PerCpuArray<ExactCounters> = PerCpuArray::with_max_entries(1, 0);

/// What probes have cost, per CPU. One element.
#[map]
pub(crate) static COSTS: PerCpuArray<CostCounters> = PerCpuArray::with_max_entries(1, 0);

/// Blocks that were drawn and have not ended, by target and address, and in which window; see
/// `sample`. Full: a further one is lost and counted.
#[map]
pub(crate) static SAMPLED: HashMap<u64, u32> =
    HashMap::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);

/// How many of [`SAMPLED`] there are at most, by a part of a hash of their keys: a look here costs less than one there. Fewer are
/// there if the collector has removed some.
#[map]
pub(crate) static SAMPLED_NEAR: Array<u64> = Array::with_max_entries(SAMPLED_GROUPS, 0);
pub(crate) const SAMPLED_GROUPS: u32 = 1 << 15;

/// Where the code of a probe's module lies, by probe.
#[map]
pub(crate) static SURROUNDINGS: Array<ProbeSurroundings> = Array::with_max_entries(1 << 16, 0);

/// Which tables a target's stacks are walked by.
#[map]
pub(crate) static SPACES: Array<SpaceWord> = Array::with_max_entries(MAX_TARGETS, BPF_F_MMAPABLE);

/// Lists of mappings, each after its head.
#[map]
pub(crate) static MAPPINGS: Array<Mapping> = Array::with_max_entries(MAX_MAPPINGS, BPF_F_MMAPABLE);

/// Rows and page entries. Chunks come as they are needed.
#[btf_map]
pub(crate) static CHUNKS: ArrayOfMaps<ChunkMap, MAX_CHUNKS> = ArrayOfMaps::new();

/// What the maps in [`CHUNKS`] look like, each an array of one chunk. Sizes instead of
/// types: before Linux 6.3 a map fits only if it has types exactly if this has
/// (`timer_off` in `bpf_map_meta_equal`), and those of the collector have none.
#[repr(C)]
pub(crate) struct ChunkMap {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY as usize],
    key_size: *const [i32; size_of::<u32>()],
    value_size: *const [i32; size_of::<Chunk>()],
    max_entries: *const [i32; 1],
    map_flags: *const [i32; BPF_F_MMAPABLE as usize],
}

impl ChunkMap {
    /// The chunk.
    #[inline(always)]
    pub(crate) fn chunk(&self) -> Option<&Chunk> {
        // SAFETY: what `CHUNKS` gives is a map; the helper gives its only element or null,
        // and elements of an array map are never removed.
        unsafe {
            bpf_map_lookup_elem(ptr::from_ref(self).cast_mut().cast(), ptr::from_ref(&0u32).cast())
                .cast::<Chunk>()
                .as_ref()
        }
    }
}

/// All rules. One element.
#[map]
pub(crate) static RULES: Array<Rules> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rules found last. One element.
#[map]
pub(crate) static RULE_CACHE: Array<RuleCache> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Per target, when the stacks copied until now would have been copied at the steady
/// rate (the generic cell rate algorithm, ITU-T I.371).
#[map]
pub(crate) static COPY_TIMES: Array<u64> = Array::with_max_entries(MAX_TARGETS, 0);

/// Room to make copies of stacks in, for each CPU [`COPIES_PER_CPU`], as a thread that makes one
/// can be interrupted by another that does. The loader sets how many. None left: no copy.
#[map]
pub(crate) static COPIES: Array<NewCopy> = Array::with_max_entries(COPIES_PER_CPU, 0);

/// Which parts of stacks the collector knows, by `copied_place`: their hashes. One element.
#[map]
pub(crate) static COPIED: Array<[u64; COPIED_PLACES]> = Array::with_max_entries(1, 0);

/// What CPUs have yet to add to the counters of a process's memory (`mm_struct`), by its address;
/// see `pages`. Full: the one used least recently is forgotten, and looked at anew.
#[map]
pub(crate) static MEMORY_CPUS: LruPerCpuHashMap<u64, MemoryOnCpu> =
    LruPerCpuHashMap::with_max_entries(MAX_MEMORIES, 0);

/// These counters, by the same address. Full: as above.
#[map]
pub(crate) static MEMORIES: LruHashMap<u64, MemorySums> =
    LruHashMap::with_max_entries(MAX_MEMORIES, 0);

/// What is known of each CPU for them, and what became of pages. One element.
#[map]
pub(crate) static PAGE_CPUS: PerCpuArray<PageCpu> = PerCpuArray::with_max_entries(1, 0);
