//! Records that the eBPF programs write into the ring buffer.
//!
//! The lower half of a record's first byte is its kind, which says which struct it is. The
//! most frequent ones are packed into three words ([`SmallAllocation`], [`SmallFree`]),
//! go into the slots of their CPU ([`crate::control::Slot`]), and leave to a [`ThreadNumber`]
//! sent before what does not change from one to the next. All others, and what does not fit
//! there, have a [`Header`] and go into the ring buffer, which carries each record's length.
//!
//! The order of all of them is that of their times: what caused another record was made before
//! it on a clock that all CPUs share.

use crate::control::COMM_BYTES;

/// Most frames in one stack. The walk keeps the innermost ones.
pub const MAX_FRAMES: usize = 256;

/// A block began, or an allocator call failed: [`Allocation`].
pub const KIND_ALLOCATION: u8 = 1;
/// A block is about to end: [`Free`].
pub const KIND_FREE: u8 = 2;
/// A reallocation of an existing block has begun: [`ReallocationBegin`].
pub const KIND_REALLOCATION_BEGIN: u8 = 3;
/// A reallocation of an existing block has returned: [`ReallocationEnd`].
pub const KIND_REALLOCATION_END: u8 = 4;
/// Frames of a stack that has not been sent before: [`StackHeader`], then frames.
pub const KIND_STACK: u8 = 5;
/// Records before this one were lost: [`Loss`].
pub const KIND_LOSS: u8 = 6;
/// The target replaced its process image: [`ProcessExec`].
pub const KIND_EXEC: u8 = 7;
/// A thread of the target has ended: [`ThreadExit`].
pub const KIND_THREAD_EXIT: u8 = 8;
/// The target's dynamic loader has mapped or unmapped libraries: [`CodeChanged`].
pub const KIND_CODE_CHANGED: u8 = 9;
/// A part of the stack itself, for what the tables could not walk: [`StackCopy`].
pub const KIND_STACK_COPY: u8 = 10;
/// A number by which records speak of a thread: [`ThreadNumber`].
pub const KIND_THREAD_NUMBER: u8 = 11;
/// A block began, or an allocator call failed: [`SmallAllocation`].
pub const KIND_SMALL_ALLOCATION: u8 = 12;
/// A block is about to end: [`SmallFree`].
pub const KIND_SMALL_FREE: u8 = 13;
/// The same, called by the module that the function is in: [`SmallFree`].
pub const KIND_SMALL_FREE_INTERNAL: u8 = 14;
/// The bits of a small record's first byte that are its kind. Records with a [`Header`] have the
/// whole byte for it.
pub const KIND_MASK: u8 = 0xf;
/// Another process is traced from now on: [`ProcessBegin`].
pub const KIND_PROCESS_BEGIN: u8 = 16;
/// A traced process has ended: [`ProcessExit`].
pub const KIND_PROCESS_EXIT: u8 = 17;
/// A page fault was handled: [`PageFault`].
pub const KIND_PAGE_FAULT: u8 = 24;
/// What a process has mapped has changed: [`MappingChange`].
pub const KIND_MAPPING_CHANGE: u8 = 25;

/// A function of one allocator has called one of another: [`AllocatorCall`].
pub const KIND_ALLOCATOR_CALL: u8 = 32;

/// Stacks are numbered below this. Numbers from its half on stand for one event only, and
/// are used again.
pub const MAX_STACK_NUMBER: u64 = 1 << 28;
/// First number of a stack that is used once.
pub const FIRST_ONCE_NUMBER: u64 = MAX_STACK_NUMBER / 2;
/// Threads are numbered below this; further ones have no number.
pub const MAX_THREAD_NUMBER: u64 = 1 << 16;

/// What every record begins with.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of the `KIND_` constants.
    pub kind: u8,
    /// Zero.
    pub padding: u8,
    /// Which probe was hit: an index the collector gave to this function of this
    /// module of this process; 0 where none applies.
    pub probe: u16,
    /// How many times the target had replaced its image (exec) since the trace began.
    pub image: u16,
    /// Which traced process: an index given by the collector.
    pub target: u16,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
}
const _: () = assert!(size_of::<Header>() == 16);

/// A call that returned a block, or failed to (`address` 0).
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Kind, probe, process and time of the return.
    pub header: Header,
    /// What the allocator returned.
    pub address_avma: u64,
    /// What the caller asked for; `u64::MAX` where the product overflowed.
    pub size_bytes: u64,
    /// Mean distance of samples when this block was drawn; 0 if every block is recorded.
    pub interval_bytes: u64,
    /// Number of the stack; its frames came in an earlier [`StackHeader`]. 0: lost.
    pub stack: u32,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
}
const _: () = assert!(size_of::<Allocation>() == 48);

/// The same as [`Allocation`], of a thread that has a number, if everything fits and every
/// block is recorded.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallAllocation {
    /// See [`kind_and_time`].
    pub kind_and_time: u64,
    /// See [`address_and_thread`].
    pub address_and_thread: u64,
    /// Bits 0 to 27 the stack, 28 to 55 the size in bytes, 56 to 63 the probe.
    pub stack_size_probe: u64,
}
const _: () = assert!(size_of::<SmallAllocation>() == 24);

impl SmallAllocation {
    /// First size that does not fit.
    pub const MAX_SIZE_BYTES: u64 = 1 << 28;
    /// First probe that does not fit.
    pub const MAX_PROBE: u16 = 1 << 8;

    /// Packs the third word.
    #[must_use]
    #[inline(always)]
    pub const fn pack(stack: u32, size_bytes: u64, probe: u16) -> u64 {
        stack as u64 | size_bytes << 28 | (probe as u64) << 56
    }
    /// Number of the stack.
    #[must_use]
    pub const fn stack(&self) -> u32 {
        (self.stack_size_probe & (MAX_STACK_NUMBER - 1)) as u32
    }
    /// Requested size.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.stack_size_probe >> 28 & (Self::MAX_SIZE_BYTES - 1)
    }
    /// Which function.
    #[must_use]
    pub const fn probe(&self) -> u16 {
        (self.stack_size_probe >> 56) as u16
    }
}

/// The same as [`Free`], of a thread that has a number, if everything fits.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallFree {
    /// See [`kind_and_time`].
    pub kind_and_time: u64,
    /// See [`address_and_thread`].
    pub address_and_thread: u64,
    /// Which function, below 2^16, and [`SMALL_FREE_ALLOCATED_SINCE`].
    pub probe_and_flags: u64,
}
const _: () = assert!(size_of::<SmallFree>() == 24);

/// The thread has asked for blocks that were not drawn since the last one that was.
pub const SMALL_FREE_ALLOCATED_SINCE: u64 = 1 << 16;

/// First address that does not fit a small record.
pub const MAX_SMALL_AVMA: u64 = 1 << 48;

/// First word of a small record: its kind, and from bit 4 on `CLOCK_MONOTONIC` in
/// nanoseconds, which 36 years after the machine's start would not fit any more.
#[must_use]
#[inline(always)]
pub const fn kind_and_time(kind: u8, time_ns: u64) -> u64 {
    kind as u64 | time_ns << 4
}

/// Second word of a small record: the address, and from bit 48 on the thread's number.
#[must_use]
#[inline(always)]
pub const fn address_and_thread(address_avma: u64, thread_number: u64) -> u64 {
    address_avma | thread_number << 48
}

/// From now on a number stands for this thread of this process image.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadNumber {
    /// Kind, process and time.
    pub header: Header,
    /// Below [`MAX_THREAD_NUMBER`]; never 0, and given once.
    pub number: u32,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
}
const _: () = assert!(size_of::<ThreadNumber>() == 24);

/// A call that frees a block, seen at its entry.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Kind, probe, process and time of the entry.
    pub header: Header,
    /// The block to free; never 0.
    pub address_avma: u64,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// 1 if the function was called from its own module (glibc frees a dying thread's cache
    /// so), and not by the program.
    pub is_internal: u16,
    /// 1 if the thread has asked for blocks that were not drawn since the last one that was.
    pub allocated_since: u16,
}
const _: () = assert!(size_of::<Free>() == 32);

/// Entry of a reallocation of an existing block: from here on the allocator may
/// hand the old address to another thread.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReallocationBegin {
    /// Kind, probe, process and time of the entry.
    pub header: Header,
    /// The block given to the call; never 0.
    pub old_address_avma: u64,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// 1 if the thread has asked for blocks that were not drawn since the last one that was.
    pub allocated_since: u32,
}
const _: () = assert!(size_of::<ReallocationBegin>() == 32);

/// Return of a reallocation of an existing block.
///
/// `new_address_avma` 0 with `size_bytes` 0 means freed; 0 with another size
/// means that the call failed and the old block lives on.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReallocationEnd {
    /// Kind, probe, process and time of the return.
    pub header: Header,
    /// The block given to the call; never 0.
    pub old_address_avma: u64,
    /// What the allocator returned.
    pub new_address_avma: u64,
    /// What the caller asked for; `u64::MAX` where the product overflowed.
    pub size_bytes: u64,
    /// As in [`Allocation`], of the new block.
    pub interval_bytes: u64,
    /// Number of the stack; its frames came in an earlier [`StackHeader`]. 0: lost.
    pub stack: u32,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
}
const _: () = assert!(size_of::<ReallocationEnd>() == 56);

/// Frames of one stack: this header, then `frame_count` addresses (`u64`, avma), innermost
/// first. One byte before an address lies the instruction being executed: the call, or
/// where no call was made, because a signal came in, the address is one too high for this.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackHeader {
    /// Kind, process and time.
    pub header: Header,
    /// The number that allocations refer to, unique in a trace, below [`FIRST_ONCE_NUMBER`].
    pub stack: u64,
    /// When the address space was last looked at before the walk, `CLOCK_MONOTONIC`; 0
    /// if never. With [`STACK_TABLES_OLD`], frames in what was mapped after it are wrong.
    pub tables_read_ns: u64,
    /// One of the `OUTCOME_` constants: why the walk ended where it did.
    pub outcome: u16,
    /// The `STACK_` flags.
    pub flags: u16,
    /// At most [`MAX_FRAMES`].
    pub frame_count: u32,
}
const _: () = assert!(size_of::<StackHeader>() == 40);

/// At least one step followed the frame pointer, for want of a table: functions built
/// without frame pointers may be missing there.
pub const STACK_USED_FRAME_POINTERS: u16 = 1;
/// Libraries were unmapped, or were about to be, after the tables were made.
pub const STACK_TABLES_OLD: u16 = 2;
/// Of a copied stack: its registers are those at a probe in the midst of a function, which is no frame of the stack.
pub const STACK_BEGINS_IN_PROBE: u16 = 4;
/// Besides, the next frame is none either: the probe is inside of a function that the one of interest calls.
pub const STACK_BEGINS_INSIDE: u16 = 8;

/// The walk ended in a null frame pointer, or in a null return address above one.
pub const OUTCOME_FRAME_POINTERS_ENDED: u16 = 1;
/// A link of the chain of frame pointers does not point up the stack, or cannot be
/// read: code without frame pointers used the register for something else.
pub const OUTCOME_FRAME_POINTER_BROKEN: u16 = 2;
/// [`MAX_FRAMES`] were walked and the chain went on.
pub const OUTCOME_DEPTH_LIMIT: u16 = 3;
/// The outermost function was reached.
pub const OUTCOME_COMPLETE: u16 = 4;
/// There are no tables yet for this image of the process.
pub const OUTCOME_NO_TABLES: u16 = 5;
/// A return address is in no memory known to hold code.
pub const OUTCOME_UNKNOWN_CODE: u16 = 6;
/// The unwind information says what a [`crate::unwind::Rule`] cannot say.
pub const OUTCOME_UNSUPPORTED_RULE: u16 = 7;
/// The stack could not be read.
pub const OUTCOME_STACK_UNREADABLE: u16 = 8;
/// A caller's frame would have lain below its callee's.
pub const OUTCOME_NOT_UPWARD: u16 = 9;
/// The tables were replaced during the walk.
pub const OUTCOME_TABLES_REPLACED: u16 = 10;
/// A return address is null where the tables say that there is one: the base of a stack
/// that the program has made itself, if the tables are right.
pub const OUTCOME_NULL_RETURN: u16 = 11;
/// The stack was not to be walked: only the caller is noted.
pub const OUTCOME_CALLER_ONLY: u16 = 12;

/// Most bytes of a stack in a [`StackCopy`].
pub const MAX_COPY_BYTES: usize = 32 * 1024;
/// What a stack is copied in, and where a copy begins: at a multiple of it. So no part goes
/// beyond the page in which a stack ends.
pub const COPY_PART_BYTES: usize = 1024;
/// Most parts of a copy.
pub const MAX_COPY_PARTS: usize = MAX_COPY_BYTES / COPY_PART_BYTES;
/// In place of what a part contains: it could not be read, and is not sent.
pub const PART_UNREADABLE: u64 = 0;
/// How many parts of copies both sides remember, one at each place.
pub const COPIED_PLACES: usize = 1 << COPIED_PLACES_LOG2;
const COPIED_PLACES_LOG2: u32 = 12;

/// The place at which a part of a target's stack is remembered.
#[must_use]
#[inline(always)]
pub const fn copied_place(target: u16, part_avma: u64) -> usize {
    let number = (part_avma / COPY_PART_BYTES as u64) ^ ((target as u64) << 54);
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - COPIED_PLACES_LOG2)) as usize
}

/// A part of a stack that the tables could not walk, to be walked by the collector: this
/// header speaks of `byte_count` bytes of memory from [`StackCopy::start_avma`] on. What they
/// are is said by [`CopiedParts`], which follow, and then by those parts that are sent. Its
/// number is used once.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackCopy {
    /// Kind, process and time.
    pub header: Header,
    /// The number that the allocation refers to, from [`FIRST_ONCE_NUMBER`] on.
    pub stack: u64,
    /// Where the allocator's function returned to.
    pub return_avma: u64,
    /// The caller's registers at that moment.
    pub sp_avma: u64,
    /// `rbp`.
    pub rbp: u64,
    /// `rbx`.
    pub rbx: u64,
    /// `r12` to `r15`.
    pub r12_to_r15: [u64; 4],
    /// One of the `OUTCOME_` constants: why the tables did not do.
    pub outcome: u16,
    /// The `STACK_` flags.
    pub flags: u16,
    /// At most [`MAX_COPY_BYTES`], a multiple of [`COPY_PART_BYTES`].
    pub byte_count: u32,
}
const _: () = assert!(size_of::<StackCopy>() == 96);

impl StackCopy {
    /// Where the copied memory begins: at the stack pointer, or less than
    /// [`COPY_PART_BYTES`] before it.
    #[must_use]
    #[inline(always)]
    pub const fn start_avma(&self) -> u64 {
        self.sp_avma & !(COPY_PART_BYTES as u64 - 1)
    }

    /// Where a part of it begins, by its number.
    #[must_use]
    #[inline(always)]
    pub const fn part_avma(&self, number: usize) -> u64 {
        self.start_avma().wrapping_add((number * COPY_PART_BYTES) as u64)
    }
}

/// The memory of a [`StackCopy`], in parts of [`COPY_PART_BYTES`]. A stack is copied again and
/// again while the functions at its outer end stay as they are, so most parts of a copy are those
/// of the one before: these are not sent, but named by their hash.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedParts {
    /// Bit `n`: whether part `n` is sent. Those that are follow one another.
    pub sent: u64,
    /// What each part contains, or [`PART_UNREADABLE`]. The rest has no meaning.
    pub hashes: [u64; MAX_COPY_PARTS],
}
const _: () = assert!(size_of::<CopiedParts>() == 264 && MAX_COPY_PARTS <= 64);

/// `lost_count` records were lost on one CPU between `first_lost_ns` and the
/// header's time, which is that of the first record to get through again.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Kind and time; no process.
    pub header: Header,
    /// `CLOCK_MONOTONIC` of the first loss since the last marker of this CPU.
    pub first_lost_ns: u64,
    /// How many records were lost since then on this CPU.
    pub lost_count: u64,
}
const _: () = assert!(size_of::<Loss>() == 32);

/// exec of a traced process. `header.image` is already that of the new image.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExec {
    /// Kind, process (new image) and time.
    pub header: Header,
    /// 1 if another thread than the leader called exec: the kernel then ends the leader,
    /// and with it the probes, which were tied to it.
    pub leader_replaced: u32,
    /// Zero.
    pub padding: u32,
    /// What it is called now, up to the first 0.
    pub comm: [u8; COMM_BYTES],
}
const _: () = assert!(size_of::<ProcessExec>() == 40);

/// A process that the eBPF side has begun to follow by itself. `header` has the index it gave to
/// it, and the image that the process is in.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessBegin {
    /// Kind, process and time.
    pub header: Header,
    /// Process id, in the initial pid namespace.
    pub pid: u32,
    /// One of the `BEGUN_BY_` constants.
    pub begun_by: u32,
    /// The index of its parent, if that is traced.
    pub parent_target: u16,
    /// The image that its parent is in.
    pub parent_image: u16,
    /// Zero.
    pub padding: u32,
    /// What it is called, up to the first 0.
    pub comm: [u8; COMM_BYTES],
}
const _: () = assert!(size_of::<ProcessBegin>() == 48);

/// By fork: a copy of its parent.
pub const BEGUN_BY_FORK: u32 = 1;
/// By exec in a child that was in its parent's memory until then (vfork).
pub const BEGUN_BY_CHILD_EXEC: u32 = 2;
/// By exec of a program that was to be traced.
pub const BEGUN_BY_EXEC: u32 = 3;

/// End of a traced process: of its last thread.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// Kind, process and time.
    pub header: Header,
    /// As wait(2) gives it; [`NO_STATUS`] for a process that is not traced any more.
    pub wait_status: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<ProcessExit>() == 24);

/// No [`ProcessExit::wait_status`].
pub const NO_STATUS: u32 = u32::MAX;

/// End of one thread of a traced process.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadExit {
    /// Kind, process and time.
    pub header: Header,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// Zero.
    pub padding: u32,
    /// Its name, up to the first zero byte.
    pub comm: [u8; COMM_BYTES],
}
const _: () = assert!(size_of::<ThreadExit>() == 40);

/// The dynamic loader of a traced process has finished a change of what is mapped.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeChanged {
    /// Kind, process and time.
    pub header: Header,
}
const _: () = assert!(size_of::<CodeChanged>() == 16);

/// A page fault of a traced process, after it was handled, and what the process has become larger
/// by in memory while that was done.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// Kind, process and time.
    pub header: Header,
    /// What was accessed.
    pub address_avma: u64,
    /// Number of the stack; its frames came in an earlier [`StackHeader`]. 0: lost.
    pub stack: u32,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// Pages that became resident, by the `RESIDENT_` constants.
    pub resident_pages: [u16; RESIDENT_KINDS],
    /// 1 if it had to wait for a disk or for another thread (`maj_flt` counts it).
    pub is_major: u16,
}
const _: () = assert!(size_of::<PageFault>() == 40);

/// A traced process has changed what it has mapped, by a system call. What takes memory is told as
/// the call returns, what gives it back as it is entered: before anybody else can have it.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingChange {
    /// Kind, process and time; the probe of the allocator's function that made the call, with
    /// [`MAPPING_BY_ALLOCATOR`].
    pub header: Header,
    /// Where what the call is about begins: what is there now, or, of
    /// [`MAPPING_CHANGE_UNMAPPED`], was. 0: the call has failed.
    pub address_avma: u64,
    /// How long it is.
    pub size_bytes: u64,
    /// Of [`MAPPING_CHANGE_MOVED`], where it was before.
    pub old_address_avma: u64,
    /// How long it was.
    pub old_size_bytes: u64,
    /// When that call was entered: what was mapped since is something else.
    pub began_ns: u64,
    /// Number of the stack; its frames came in an earlier [`StackHeader`]. 0: lost, or not asked
    /// for.
    pub stack: u32,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// One of the `MAPPING_CHANGE_` constants.
    pub change: u16,
    /// `MAPPING_` bits.
    pub flags: u16,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<MappingChange>() == 72);

/// `mmap` has returned.
pub const MAPPING_CHANGE_MAPPED: u16 = 1;
/// `munmap` was entered.
pub const MAPPING_CHANGE_UNMAPPED: u16 = 2;
/// `mremap` has returned.
pub const MAPPING_CHANGE_MOVED: u16 = 3;
/// `brk` has returned: this is where the heap ends now.
pub const MAPPING_CHANGE_BREAK: u16 = 4;

/// A file is mapped.
pub const MAPPING_OF_FILE: u16 = 1;
/// What is written is seen by others (`MAP_SHARED`).
pub const MAPPING_SHARED: u16 = 1 << 1;
/// The call was made inside a call of an allocator.
pub const MAPPING_BY_ALLOCATOR: u16 = 1 << 2;
/// Whether it was is not known, as not all calls of allocators are followed.
pub const MAPPING_BY_UNKNOWN: u16 = 1 << 3;
/// What was moved is where it was as well (`MREMAP_DONTUNMAP`, or an old size of 0).
pub const MAPPING_KEEPS_OLD: u16 = 1 << 4;

/// Kinds of resident pages: each is in one of three counters of its process.
pub const RESIDENT_KINDS: usize = 3;
/// Pages of files.
pub const RESIDENT_FILE: usize = 0;
/// Pages of the process alone.
pub const RESIDENT_ANONYMOUS: usize = 1;
/// Pages of shared memory.
pub const RESIDENT_SHARED: usize = 2;

/// A function of an allocator was called inside a call of one of another: what the outer one gives
/// can be the inner one's, and what it is given to free, it can hand on. Told once of each two,
/// or a few times.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatorCall {
    /// Kind, process and time.
    pub header: Header,
    /// Number of the allocator of the outer function, as its cookie has it; 0 if it is not known.
    pub outer: u16,
    /// The same, of the inner one.
    pub inner: u16,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<AllocatorCall>() == 24);
