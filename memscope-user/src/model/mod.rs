//! The vocabulary of all stages: ids, processes, modules, frames, stacks, events.
//!
//! Plain data without logic. A stage takes some of these and gives others; a
//! recording is a sequence of [`Item`]s.
//!
//! Addresses say what they count from: `avma` is an address in the running
//! process, `svma` one in the ELF file's own numbering, `file_offset` a position in
//! the file. They are keys and are never followed.

mod event;
mod ids;
mod memory;

pub use event::{Event, FreeCaller, MappedBy, MappingKind};
pub use ids::{AllocatorId, FrameId, ModuleId, ProbeId, ProcessId, StackId, ThreadId};
pub use memory::{
    ControlGroupMemory, HeapMappings, MappedMemory, MemoryReading, ProcessMemory, ResidentMemory,
};

use serde::{Deserialize, Serialize};

/// One element of a recording, in the order in which it became known.
///
/// What an item refers to by an id was defined by an earlier item, except a
/// stack whose frames were lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// Defines a process.
    Process(Process),
    /// A process image ended: the process exited or replaced itself.
    ProcessEnd(ProcessEnd),
    /// Defines a module.
    Module(Module),
    /// Defines a probe.
    Probe(Probe),
    /// Defines a frame.
    Frame(Frame),
    /// Defines a stack.
    Stack(Stack),
    /// Says what a frame is called.
    Symbols(FrameSymbols),
    /// Something the target did, or a place where such things are missing.
    Event(Event),
    /// What the kernel side had counted at some moment; later ones replace earlier ones.
    Counters(Counters),
    /// What it had counted of all calls while it sampled; later ones replace earlier ones.
    ExactCounts(ExactCounts),
    /// Allocations of which only this is known, as there was no room for their records.
    Counted(CountedAllocations),
    /// A stretch of time in which the targets were observed, if a budget was to be kept; given
    /// when it is over, and after all that was recorded in it.
    Window(Window),
    /// A process was begun by another one, as its copy.
    Fork(Fork),
    /// How much memory a process had at some moment. What happened until then is before it.
    Memory(MemoryReading),
    /// What became of resident memory beside page faults; only where these are observed, and then
    /// before all of them. Later ones replace earlier ones.
    PageSums(PageSums),
    /// What processes map by system calls is recorded; before all of it.
    MappingsObserved,
    /// Says whose a probed function is, where that is known; after the probe's definition.
    Owner(ProbeOwner),
    /// A function of one allocator has called one of another.
    AllocatorCall(AllocatorCall),
    /// Says what a thread is called, if not as its process; later ones replace earlier ones.
    ThreadName(ThreadName),
    /// A thread has allocated blocks that were not drawn, after its last one that was.
    AllocatedSince(AllocatedSince),
}

/// One image of one process: exec begins a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id in this recording.
    pub id: ProcessId,
    /// Its process id, in the collector's pid namespace.
    pub pid: u32,
    /// Start of the process in clock ticks since boot (`/proc/PID/stat`, field 22);
    /// with the pid it says which process this is even when pids are used again.
    pub start_ticks: u64,
    /// How many times the process had replaced its image since the trace began.
    pub image: u32,
    /// `CLOCK_MONOTONIC` of the first moment at which it was observed.
    pub observed_from_ns: u64,
    /// Name of its main thread. Untrusted text.
    pub comm: String,
    /// Path of its executable, as `/proc/PID/exe` gives it. Untrusted text.
    pub exe: String,
    /// Allocators found in it, by module name.
    pub allocators: Vec<String>,
    /// Whether it was observed from its first instruction.
    pub from_start: bool,
    /// Whether it may have called an allocator before that was probed, while the
    /// process was observed already: what it did then is missing, and not counted.
    pub probed_late: bool,
}

/// A thread has allocated blocks of which nothing is recorded: what it frees next was not allocated
/// right before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocatedSince {
    /// Its process.
    pub process: ProcessId,
    /// Its number.
    pub thread: ThreadId,
}

/// What a thread is called: the name that it had when it ended, or when the trace did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadName {
    /// Its process.
    pub process: ProcessId,
    /// Its number.
    pub thread: ThreadId,
    /// Its name. Untrusted text.
    pub name: String,
}

/// A process that is a copy of another one's image; both were defined before. What was live in that
/// one is inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The copy.
    pub process: ProcessId,
    /// Of which process.
    pub parent: ProcessId,
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
}

/// Where probes are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeScope {
    /// In the targets only.
    Targets,
    /// In all processes of the host that use the same files.
    Host,
}

impl ProbeScope {
    /// What the command line calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Targets => "targets",
            Self::Host => "host",
        }
    }
}

/// End of a process image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    /// Which.
    pub process: ProcessId,
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// What happened.
    pub reason: EndReason,
}

/// Why a process image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// It replaced itself by exec.
    Exec,
    /// It exited; the status, where it is known, as waitpid gives it (an exit
    /// code, or 128 + signal).
    Exit(Option<i32>),
}

impl EndReason {
    /// In a word, as the exports have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Exit(_) => "exit",
        }
    }

    /// Exit code, or 128 and the signal, where it is known.
    #[must_use]
    pub fn exit_status(self) -> Option<i32> {
        match self {
            Self::Exec => None,
            Self::Exit(status) => status,
        }
    }
}

/// A file mapped as code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its id in this recording.
    pub id: ModuleId,
    /// Path in the target's view; `[vdso]` and the like for memory without a file.
    /// Untrusted text.
    pub path: String,
    /// GNU build id, empty if it has none.
    pub build_id: Vec<u8>,
}

/// A probe that was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its id in this recording.
    pub id: ProbeId,
    /// Name of the function.
    pub function: String,
    /// Where the function is.
    pub module: ModuleId,
    /// Offset of the probed instruction.
    pub file_offset: u64,
    /// Whether the kernel emulates the instruction; if not, it single-steps it,
    /// at several times the price.
    pub emulated: bool,
}

/// Which allocator a probed function is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeOwner {
    /// Which function.
    pub probe: ProbeId,
    /// Whose.
    pub allocator: AllocatorId,
    /// How that is known.
    pub known_by: OwnerEvidence,
}

/// How it is known which allocator a function is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerEvidence {
    /// Its module defines what only allocators have that take their memory from the kernel.
    Module,
    /// Somebody has described it so.
    Description,
}

/// A function was called inside a call of one of another allocator: what the outer one gives can
/// be the inner one's, and what the outer one is given to free, it can hand on. None is an allocator
/// that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AllocatorCall {
    /// Whose function called.
    pub outer: Option<AllocatorId>,
    /// Whose was called.
    pub inner: Option<AllocatorId>,
}

/// One place in code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Its id in this recording.
    pub id: FrameId,
    /// Where it points.
    pub location: Location,
}

/// Where a frame points: for a caller, at its return address, one instruction
/// after the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Location {
    /// Into a file.
    Module {
        /// Which.
        module: ModuleId,
        /// Where in it.
        file_offset: u64,
    },
    /// Into memory of a process that no known file is mapped to.
    Unmapped {
        /// Whose.
        process: ProcessId,
        /// Where in it.
        address_avma: u64,
    },
}

/// A call chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Its id in this recording.
    pub id: StackId,
    /// Whose.
    pub process: ProcessId,
    /// Why it ends where it ends.
    pub outcome: StackOutcome,
    /// Innermost first: the allocator's caller first.
    pub frames: Vec<FrameId>,
}

/// Whether a stack is complete, or why not. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StackOutcome {
    /// Every frame up to the start of the thread.
    Complete,
    /// The start of the thread was reached, but on the way code without unwind
    /// information was passed by its frame pointer: functions without one may be missing
    /// there.
    WithFramePointers,
    /// Code without unwind information had no frame pointer either: what called the
    /// outermost frame is unknown.
    FramePointerBroken,
    /// Deeper than the limit: the innermost frames are kept.
    DepthLimit,
    /// The record of its frames was lost.
    FramesLost,
    /// The kernel side gave a reason that this version does not know.
    UnknownReason,
    /// The process had no unwind tables yet: it had just begun to run this program.
    NoTables,
    /// The outermost frame is in memory that was not known to hold code.
    UnknownCode,
    /// The unwind information of the outermost frame says what memscope cannot follow.
    UnsupportedRule,
    /// The stack could not be read beyond the outermost frame.
    StackUnreadable,
    /// The unwind information led down the stack, which cannot be.
    NotUpward,
    /// The unwind tables were replaced while the stack was walked.
    TablesReplaced,
    /// Walked with unwind tables of a library that may have been unmapped before.
    TablesOutdated,
    /// A return address was null: the base of a stack that the program made itself.
    NullReturn,
    /// Walked from a copy of the stack, which ended before the stack did.
    CopyTooShort,
    /// There are more different stacks than are kept apart: only the caller is known.
    StackTableFull,
    /// Only the caller was to be noted.
    CallerOnly,
}

impl StackOutcome {
    /// All of them, in order.
    pub const ALL: [Self; 17] = [
        Self::Complete,
        Self::WithFramePointers,
        Self::FramePointerBroken,
        Self::DepthLimit,
        Self::FramesLost,
        Self::UnknownReason,
        Self::NoTables,
        Self::UnknownCode,
        Self::UnsupportedRule,
        Self::StackUnreadable,
        Self::NotUpward,
        Self::TablesReplaced,
        Self::TablesOutdated,
        Self::NullReturn,
        Self::CopyTooShort,
        Self::StackTableFull,
        Self::CallerOnly,
    ];

    /// Name in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::WithFramePointers => "with_frame_pointers",
            Self::FramePointerBroken => "frame_pointer_broken",
            Self::DepthLimit => "depth_limit",
            Self::FramesLost => "frames_lost",
            Self::UnknownReason => "unknown_reason",
            Self::NoTables => "no_tables",
            Self::UnknownCode => "unknown_code",
            Self::UnsupportedRule => "unsupported_rule",
            Self::StackUnreadable => "stack_unreadable",
            Self::NotUpward => "not_upward",
            Self::TablesReplaced => "tables_replaced",
            Self::TablesOutdated => "tables_outdated",
            Self::NullReturn => "null_return",
            Self::CopyTooShort => "copy_too_short",
            Self::StackTableFull => "stack_table_full",
            Self::CallerOnly => "caller_only",
        }
    }
}

/// What a frame is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameSymbols {
    /// Which frame.
    pub frame: FrameId,
    /// Innermost inlined function first, the function that contains the code last;
    /// empty if no symbol table or debug information covers it.
    pub functions: Vec<SourceFunction>,
}

/// A function from a symbol table or debug information.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFunction {
    /// Demangled name. Untrusted text.
    pub name: String,
    /// Source file. Untrusted text.
    pub file: Option<String>,
    /// Line of the call, or of the code.
    pub line: Option<u32>,
    /// Whether the compiler merged it into the function after it in the list.
    pub inlined: bool,
}

/// What the kernel side counted.
///
/// Law: `attempted = recorded + Σ lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Records that were to be made.
    pub attempted: u64,
    /// Records that the ring buffer took.
    pub recorded: u64,
    /// Hits inside another allocator call.
    pub nested: u64,
    /// Probe hits while recording was on.
    pub hits: u64,
    /// Records that arrived but made no sense.
    pub malformed: u64,
    /// Calls that were under way when recording ended; neither recorded nor lost.
    pub in_flight: u64,
    /// Lost, by cause.
    pub lost: Vec<(LossCause, u64)>,
}

impl Counters {
    /// Sum over all causes.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        // A forged recording can hold counts that have no sum.
        self.lost.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// What was counted of all calls, sampled or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactCounts {
    /// Those of which there were calls, in order of size.
    pub classes: Vec<SizeClass>,
    /// Frees of blocks that were not drawn, or not seen to begin.
    pub frees_dropped: u64,
}

/// Sizes of as many bits: 0 only 0, 1 only 1, 2 from 2 to 3, 3 from 4 to 7 …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeClass {
    /// How many bits.
    pub bits: u8,
    /// Calls that asked for a block of such a size. Those that got none are among them.
    pub calls: u64,
    /// Sum of the sizes.
    pub bytes: u64,
}

impl SizeClass {
    /// The largest of the sizes.
    #[must_use]
    pub fn largest_bytes(&self) -> u64 {
        1_u64.checked_shl(self.bits.into()).map_or(u64::MAX, |power| power - 1)
    }
}

impl ExactCounts {
    /// Calls that asked for a block.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.classes.iter().fold(0, |sum, class| sum.saturating_add(class.calls))
    }

    /// Sum of the sizes they asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.classes.iter().fold(0, |sum, class| sum.wrapping_add(class.bytes))
    }
}

/// Allocations that were lost one by one, and counted by their stack. What became of their
/// blocks is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedAllocations {
    /// Whose.
    pub process: ProcessId,
    /// From where.
    pub stack: StackId,
    /// `CLOCK_MONOTONIC` of the moment at which the counters were read.
    pub time_ns: u64,
    /// Blocks since they were last read.
    pub allocations: u64,
    /// Sum of their sizes.
    pub bytes: u64,
}

/// A stretch of time in which the targets were observed, and the one before it in which they
/// were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// `CLOCK_MONOTONIC`.
    pub begin_ns: u64,
    /// `CLOCK_MONOTONIC`. The same as its begin if the recording ended unobserved.
    pub end_ns: u64,
    /// Processor time of the targets in it.
    pub observed_cpu_ns: u64,
    /// Processor time of the targets since the window before.
    pub missed_cpu_ns: u64,
    /// What probes have cost the targets since the window before ended: hits times what such a
    /// hit costs on this kernel, and the time that the programs ran.
    pub probe_cost_ns: u64,
    /// How many hits that were.
    pub hits: u64,
    /// By how much the targets' own code was slower behind them, by the measured mean.
    pub aftermath_ns: u64,
    /// How often, when it was looked at what the targets used it for, they were at work.
    pub work_samples: u64,
    /// How often they were in a probe.
    pub probe_samples: u64,
    /// Processor time of the collector since the window before ended.
    pub collector_cpu_ns: u64,
    /// Mean bytes between two sampled blocks as it ended.
    pub interval_bytes: u64,
    /// What was to be spent at most, of the targets' work, in millionths.
    pub budget_ppm: u32,
    /// Whether the targets were observed on, until the recording ended: then what was live
    /// still is.
    pub is_last: bool,
}

/// Bytes that are resident, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidentBytes {
    /// Of the process alone: heap, stacks, written copies of files' pages.
    pub anonymous: u64,
    /// Pages of files.
    pub file: u64,
    /// Pages of shared memory.
    pub shared: u64,
}

impl ResidentBytes {
    /// All kinds together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        // A forged recording can have more than a u64 holds.
        self.anonymous.wrapping_add(self.file).wrapping_add(self.shared)
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        self.anonymous = self.anonymous.wrapping_add(others.anonymous);
        self.file = self.file.wrapping_add(others.file);
        self.shared = self.shared.wrapping_add(others.shared);
    }
}

/// What became of the targets' resident memory beside their page faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSums {
    /// What became resident in no page fault that was told.
    pub elsewhere: ResidentBytes,
    /// What was given back or taken away, but for the end of a process.
    pub gone: ResidentBytes,
}

/// What is observed of the targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observes {
    /// Calls of allocators.
    #[default]
    Allocations,
    /// Page faults.
    PageFaults,
}

impl Observes {
    /// Name in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocations => "allocations",
            Self::PageFaults => "pages",
        }
    }
}

/// What is done when records come faster than they can be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOverflow {
    /// The sums of each site are kept exact.
    #[default]
    Count,
    /// The target is stopped until there is room.
    Pause,
}

impl OnOverflow {
    /// Name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Pause => "pause",
        }
    }
}

/// Why an event is missing. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LossCause {
    /// No room in the ring buffer for an allocation.
    RingFullAllocation,
    /// No room in the ring buffer for a free.
    RingFullFree,
    /// No room in the ring buffer for the begin or end of a reallocation.
    RingFullReallocation,
    /// No room in the ring buffer for the frames of a stack.
    RingFullStack,
    /// No room in the ring buffer for an exec, thread exit or change of code.
    RingFullProcess,
    /// More threads than the table holds.
    ThreadTableFull,
    /// A call was entered and never returned.
    ReturnNotSeen,
    /// The result could not be read from the target's memory.
    ResultUnreadable,
    /// A record arrived damaged.
    MalformedRecord,
    /// No room to remember a block that was drawn.
    SampleTableFull,
    /// No room in the ring buffer for a page fault.
    RingFullPageFault,
    /// No room in the ring buffer for a change of what is mapped.
    RingFullMapping,
}

impl LossCause {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::RingFullAllocation,
        Self::RingFullFree,
        Self::RingFullReallocation,
        Self::RingFullStack,
        Self::RingFullProcess,
        Self::ThreadTableFull,
        Self::ReturnNotSeen,
        Self::ResultUnreadable,
        Self::MalformedRecord,
        Self::SampleTableFull,
        Self::RingFullPageFault,
        Self::RingFullMapping,
    ];

    /// Name in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFullAllocation => "ring_full_allocation",
            Self::RingFullFree => "ring_full_free",
            Self::RingFullReallocation => "ring_full_reallocation",
            Self::RingFullStack => "ring_full_stack",
            Self::RingFullProcess => "ring_full_process",
            Self::ThreadTableFull => "thread_table_full",
            Self::ReturnNotSeen => "return_not_seen",
            Self::ResultUnreadable => "result_unreadable",
            Self::MalformedRecord => "malformed_record",
            Self::SampleTableFull => "sample_table_full",
            Self::RingFullPageFault => "ring_full_page_fault",
            Self::RingFullMapping => "ring_full_mapping",
        }
    }
}

/// How probes are attached. From the cheapest for the traced program to the dearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMethod {
    /// One program at a function's entry and return, by uprobe_multi links (Linux 6.13).
    Session,
    /// A program at each, by uprobe_multi links (Linux 6.6, for whole processes 6.10).
    Multi,
    /// A program at each, by a perf event for each.
    PerfEvent,
}

impl AttachMethod {
    /// All of them, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Session, Self::Multi, Self::PerfEvent];

    /// Name on the command line and in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Multi => "multi",
            Self::PerfEvent => "perf-event",
        }
    }
}

/// Where it is observed what system calls map. The cheaper one for the host first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingMethod {
    /// By programs in the kernel's functions of these calls.
    Functions,
    /// By programs at the entry and return of all system calls.
    Tracepoints,
}

impl MappingMethod {
    /// All of them, the cheaper first.
    pub const ALL: [Self; 2] = [Self::Functions, Self::Tracepoints];

    /// Name on the command line and in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Functions => "functions",
            Self::Tracepoints => "tracepoints",
        }
    }
}

/// What a recording says of itself at its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// Version of the memscope that wrote it.
    pub memscope_version: String,
    /// Wall-clock time at the beginning, seconds since 1970 UTC.
    pub started_at_unix_seconds: u64,
    /// The nanoseconds to it.
    pub started_at_unix_nanoseconds: u32,
    /// `CLOCK_MONOTONIC` at the same moment.
    pub started_at_ns: u64,
    /// Kernel release.
    pub kernel: String,
    /// Machine name of the architecture.
    pub arch: String,
    /// The command that was run, if one was.
    pub command: Option<Vec<String>>,
    /// Size of the ring buffer.
    pub ring_bytes: u64,
    /// Mean bytes between two sampled blocks, as asked for; none: every block.
    pub sampling_interval_bytes: Option<u64>,
    /// How much of a call chain was asked for.
    pub stacks: StackMode,
}

/// How much of each call chain is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StackMode {
    /// All of it.
    #[default]
    Full,
    /// Only the caller is noted.
    CallerOnly,
}

impl StackMode {
    /// Name on the command line and in exports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::CallerOnly => "caller",
        }
    }
}

/// What a recording says of itself at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// `CLOCK_MONOTONIC` when recording ended.
    pub ended_at_ns: u64,
    /// Why it ended.
    pub reason: EndingReason,
}

/// Why recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndingReason {
    /// All targets ended.
    TargetsEnded,
    /// `--duration` was over.
    Duration,
    /// Interrupted by a signal.
    Interrupted,
}
