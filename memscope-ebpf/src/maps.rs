//! Every map: what it holds, how large it is, what happens when it is full.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use memscope_common::control::{Consumer, CpuCounters, MAX_TARGETS, Target, ThreadState};

/// All records, in the order in which their places were reserved. The loader sets
/// the size. Full: the record is lost and counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(16 * 1024 * 1024, 0);

/// What is counted, per CPU. One element.
#[map]
pub(crate) static COUNTERS: PerCpuArray<CpuCounters> = PerCpuArray::with_max_entries(1, 0);

/// Control blocks of the traced processes, by target index.
#[map]
pub(crate) static TARGETS: Array<Target> = Array::with_max_entries(MAX_TARGETS, 0);

/// How many times each target has replaced its image; written here only, so that no
/// exec is overwritten by the collector.
#[map]
pub(crate) static IMAGES: Array<u32> = Array::with_max_entries(MAX_TARGETS, 0);

/// Target index by process id, for the events that no probe's cookie tells apart.
#[map]
pub(crate) static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// State of the reader. One element.
#[map]
pub(crate) static CONSUMER: Array<Consumer> = Array::with_max_entries(1, 0);

/// State per thread (`pid_tgid`), made at its first call and removed at its exit.
/// Full: calls of further threads are lost and counted.
#[map]
pub(crate) static THREADS: HashMap<u64, ThreadState> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// A zeroed [`ThreadState`], too large for the BPF stack. One element.
#[map]
pub(crate) static NEW_THREAD: Array<ThreadState> = Array::with_max_entries(1, 0);

/// Identities of the stacks already sent. Full: the least recently used is
/// forgotten, and its frames are sent again when next seen.
#[map]
pub(crate) static SENT_STACKS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(65_536, 0);
