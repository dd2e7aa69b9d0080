//! Records that the eBPF programs write into the ring buffer.
//!
//! Every record starts with a [`Header`], whose `kind` says which struct it is.
//! The ring buffer itself carries each record's length.

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
    /// Identity of the stack; its frames came in an earlier [`StackHeader`].
    pub stack: u64,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Allocation>() == 48);

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
    /// Return address minus the probed instruction's address, where that fits
    /// an `i32`, else 0. It tells calls from inside the allocator's own module
    /// (glibc frees a dying thread's cache so) from the program's calls.
    pub caller_distance_bytes: i32,
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
    /// Zero.
    pub padding: u32,
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
    /// Identity of the stack; its frames came in an earlier [`StackHeader`].
    pub stack: u64,
    /// Thread id, in the initial pid namespace.
    pub thread: u32,
    /// Zero.
    pub padding: u32,
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
    /// The identity that allocations refer to, unique within (target, image).
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

/// Most bytes of a stack in a [`StackCopy`].
pub const MAX_COPY_BYTES: usize = 32 * 1024;
/// What a stack is copied in, and where a copy begins: at a multiple of it. So no part goes
/// beyond the page in which a stack ends.
pub const COPY_PART_BYTES: usize = 1024;

/// A part of a stack that the tables could not walk, to be walked by the collector: this
/// header, then `byte_count` bytes of memory from [`StackCopy::start_avma`] on. Its
/// identity is used once.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackCopy {
    /// Kind, process and time.
    pub header: Header,
    /// The identity that the allocation refers to.
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
}

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
}
const _: () = assert!(size_of::<ProcessExec>() == 24);

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
}
const _: () = assert!(size_of::<ThreadExit>() == 24);

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
