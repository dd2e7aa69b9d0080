//! Tables by which the eBPF side finds the callers of a function without frame pointers.
//!
//! They say what `.eh_frame` says (DWARF 5, 6.4; Linux Standard Base, 10.6), in a form
//! that a bounded search can read: for each range of instructions one [`Rule`].
//!
//! ```text
//! target ──▶ space word ──▶ list of mappings ──▶ page entry ──▶ rows ──▶ rule
//! (SPACES)                  (MAPPINGS)           (CHUNKS)       (CHUNKS)  (RULES)
//! ```
//!
//! Page entries and rows are numbered through all chunks: word `n` is word
//! `n % CHUNK_WORDS` of chunk `n / CHUNK_WORDS`. The rows of one page lie in one chunk.

/// How the canonical frame address is found, the stack pointer's value before the call:
/// the `cfa` of a [`Rule`]. No row, or a gap between functions.
pub const CFA_NONE: u8 = 0;
/// Stack pointer + `cfa_offset`.
pub const CFA_SP: u8 = 1;
/// `rbp` + `cfa_offset`.
pub const CFA_BP: u8 = 2;
/// `rbx` + `cfa_offset`: realigned stacks, and the resolver of lazy symbols.
pub const CFA_BX: u8 = 3;
/// `r10` + `cfa_offset`: prologues that realign the stack. Known only where a signal
/// interrupted one.
pub const CFA_R10: u8 = 4;
/// The word at the stack pointer + `cfa_offset`, plus `addend_words` words.
pub const CFA_DEREF_SP: u8 = 5;
/// The word at `rbp` + `cfa_offset`, plus `addend_words` words: realigned stacks.
pub const CFA_DEREF_BP: u8 = 6;
/// Entries of a procedure linkage table, 16 bytes each: stack pointer + 8, and 8 more
/// from the byte `cfa_offset` of an entry on.
pub const CFA_PLT: u8 = 7;
/// Where a signal handler returns to: all registers lie in the `ucontext` at the stack
/// pointer.
pub const CFA_SIGNAL: u8 = 8;
/// The outermost function of a thread: its return address is undefined.
pub const CFA_END: u8 = 9;
/// What the file says cannot be said in a [`Rule`].
pub const CFA_UNSUPPORTED: u8 = 10;

/// Where the caller's value of a register is: the `rbp` and `rbx` of a [`Rule`]. In the
/// register still.
pub const SAVED_NOT: u8 = 0;
/// At the canonical frame address + offset.
pub const SAVED_AT_CFA: u8 = 1;
/// At this function's `rbp` + offset: realigned stacks.
pub const SAVED_AT_BP: u8 = 2;

/// How to find the caller from inside a function. The return address lies just below
/// the canonical frame address, always.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// One of the `CFA_` constants.
    pub cfa: u8,
    /// One of the `SAVED_` constants.
    pub rbp: u8,
    /// One of the `SAVED_` constants.
    pub rbx: u8,
    /// For `CFA_DEREF_SP` and `CFA_DEREF_BP`.
    pub addend_words: u8,
    /// Bytes; see `cfa`.
    pub cfa_offset: i32,
    /// Bytes; see `rbp`.
    pub rbp_offset: i32,
    /// Bytes; see `rbx`.
    pub rbx_offset: i32,
}
const _: () = assert!(size_of::<Rule>() == 16);

impl Rule {
    /// A rule with nothing but a kind.
    #[must_use]
    pub const fn of_kind(cfa: u8) -> Self {
        Self {
            cfa,
            rbp: SAVED_NOT,
            rbx: SAVED_NOT,
            addend_words: 0,
            cfa_offset: 0,
            rbp_offset: 0,
            rbx_offset: 0,
        }
    }
}

/// Rules in the kernel at most: 15 bits.
pub const MAX_RULES: usize = 1 << 15;
/// Rule 0 of a file's table: nothing is known of this code. In the kernel no row leads
/// to it, because a word of 0 in the cache is an empty one.
pub const RULE_NONE: u32 = 0;
/// Rule 1: [`CFA_END`].
pub const RULE_END: u32 = 1;
/// Rule 2 in the kernel: [`CFA_NONE`], for code of which nothing is known; its frame
/// pointer is followed.
pub const RULE_FRAME_POINTER: u32 = 2;

/// One element of the map that holds all rules.
#[repr(C)]
pub struct Rules {
    /// By number.
    pub rules: [Rule; MAX_RULES],
}

/// Words of a chunk: 1 MiB of them.
pub const CHUNK_WORDS: usize = 1 << 17;
/// Chunks at most: 256 MiB, some 33 million rows.
pub const MAX_CHUNKS: usize = 256;

/// A part of the memory that holds rows and page entries.
///
/// A row is `offset | rule << 32`: from this offset on, until that of the next row, this
/// rule holds. Offsets count from the `bias_avma` of a [`Mapping`]. A page entry is
/// `first row | number of rows << 32`, for the rows that hold in one page of 4 KiB; the
/// first may begin before it.
#[repr(C)]
pub struct Chunk {
    /// Rows and page entries.
    pub words: [u64; CHUNK_WORDS],
}

/// Size of the pages that page entries stand for: smaller pages than these cannot be
/// mapped, so no two files share one.
pub const PAGE_SHIFT: u32 = 12;
/// Rows of one page at most: one per byte, and one that began before.
pub const MAX_PAGE_ROWS: u32 = (1 << PAGE_SHIFT) + 1;

/// Code that can be looked up in tables.
pub const MAPPING_TABLE: u32 = 1;
/// Code without tables, such as what a JIT compiler made: frame pointers are followed.
pub const MAPPING_FRAME_POINTERS: u32 = 2;

/// Executable memory of an address space: an element of a list in order of addresses.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start_avma: u64,
    /// First address after it.
    pub end_avma: u64,
    /// The address from which the offsets of its rows count; at most `start_avma`.
    pub bias_avma: u64,
    /// Number of the page entry for the page of `bias_avma`; the bias is page-aligned.
    pub first_page: u32,
    /// One of the `MAPPING_` constants.
    pub kind: u32,
}
const _: () = assert!(size_of::<Mapping>() == 32);

/// Elements of the map of [`Mapping`]s, of all targets.
pub const MAX_MAPPINGS: u32 = 1 << 18;
/// Mappings of one address space at most.
pub const MAX_SPACE_MAPPINGS: u32 = (1 << 13) - 1;

/// What stands before a list of mappings, in the same map and of the same size. A list
/// and its head are not changed while a space word leads to them.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingList {
    /// Which image of the target it describes; see [`Epoch`].
    pub image: u32,
    /// What had been unmapped before it was made; see [`Epoch`].
    pub removals: u32,
    /// When the address space was looked at, `CLOCK_MONOTONIC`.
    pub read_at_ns: u64,
    /// Mappings that follow.
    pub count: u32,
    /// Unique among all lists in use: what the rules remembered for addresses are
    /// known by. 16 bits.
    pub generation: u32,
    /// Zero.
    pub padding: u64,
}
const _: () = assert!(size_of::<MappingList>() == size_of::<Mapping>());

/// Per target, the position of its list's head in the map of mappings, in the lower
/// half, and a number that is different each time, in the upper: a walk during which
/// the word has changed is not to be trusted. 0: there is no list.
pub type SpaceWord = u64;

/// What has changed in a target's address space, counted by the eBPF side as it happens.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// How many times the target has replaced its image.
    pub image: u32,
    /// How many times its loader has said that it unmaps, or has unmapped, libraries.
    pub removals: u32,
    /// What the loader said last: `r_state` of `struct r_debug` (glibc, `<link.h>`).
    pub loader_state: u32,
    /// Zero.
    pub padding: u32,
}
const _: () = assert!(size_of::<Epoch>() == 16);

/// Addresses whose rules are remembered.
pub const CACHE_WORDS: usize = 1 << 14;

/// The rules found last, by address. A word holds all that tells its address apart, so
/// that no reader can take one address's rule for another's: the address times an odd
/// number modulo 2^47 is unique to it; 14 bits of the product choose the word, the other
/// 33 are in it, with 15 bits of rule and 16 of the list's generation.
#[repr(C)]
pub struct RuleCache {
    /// By hash of the address.
    pub words: [u64; CACHE_WORDS],
}

/// Where the kernel keeps the true return address of a function that a uretprobe waits
/// for: byte offsets of fields, from the kernel's BTF. All 0: not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `task_struct.utask`.
    pub task_utask: u32,
    /// `uprobe_task.return_instances`.
    pub utask_return_instances: u32,
    /// `return_instance.stack`.
    pub instance_stack: u32,
    /// `return_instance.orig_ret_vaddr`.
    pub instance_return: u32,
    /// `return_instance.next`.
    pub instance_next: u32,
    /// 1 if the others are known.
    pub known: u32,
}
const _: () = assert!(size_of::<KernelOffsets>() == 24);

/// Value of a register that is not read before it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Saved {
    /// The value, or the address in the stack at which it lies.
    pub word: u64,
    /// One of the constants of this type.
    pub place: u64,
}

impl Saved {
    /// It cannot be told.
    pub const UNKNOWN: u64 = 0;
    /// `word` is the value.
    pub const VALUE: u64 = 1;
    /// The value is in memory at `word`.
    pub const IN_MEMORY: u64 = 2;

    /// Not known.
    #[must_use]
    #[inline(always)]
    pub const fn unknown() -> Self {
        Self { word: 0, place: Self::UNKNOWN }
    }
    /// A known value.
    #[must_use]
    #[inline(always)]
    pub const fn value(word: u64) -> Self {
        Self { word, place: Self::VALUE }
    }
    /// In memory.
    #[must_use]
    #[inline(always)]
    pub const fn at(slot_avma: u64) -> Self {
        Self { word: slot_avma, place: Self::IN_MEMORY }
    }
}

/// A function that is being executed: its registers, as far as they are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// Where it goes on.
    pub pc_avma: u64,
    /// 1 if that is a return address, so that the call before it is what is looked up;
    /// 0 if it was interrupted there.
    pub returns: u64,
    /// Stack pointer.
    pub sp_avma: u64,
    /// `rbp`.
    pub bp: u64,
    /// `rbx`.
    pub bx: Saved,
    /// `r10`, which calls do not preserve.
    pub r10: Saved,
}
const _: () = assert!(size_of::<Frame>() == 64);

/// A walk up a stack. It is kept in the thread's state rather than on the BPF stack,
/// also because the verifier does not tell apart what is in a map: on the stack it
/// would follow each combination of values that can come together there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// Where it has come to.
    pub frame: Frame,
    /// Of all frames until now.
    pub hash: u64,
    /// How many they are.
    pub frame_count: u64,
    /// One of the `OUTCOME_` constants.
    pub outcome: u64,
    /// The `STACK_` flags.
    pub flags: u64,
    /// Where in the stack the address to be looked up next lay; 0 for the first.
    pub return_slot_avma: u64,
    /// The probe in the midst of a function that the walk begins in, which is no frame of the stack; 0 if none.
    pub begins_in_probe: u64,
    /// Position of the first mapping of the list.
    pub first_mapping: u64,
    /// How many mappings there are.
    pub mapping_count: u64,
    /// The list's.
    pub generation: u64,
}
const _: () = assert!(size_of::<Walk>() == 136);
