//! What a probe is told of the function that it sits on.

use crate::unwind::Rule;

/// Where the module of a probed function has its code, as seen from the probe: it tells calls
/// that the module makes itself from those of the program. And where the function's caller is, and which calls matter, if it is
/// probed in its midst.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSurroundings {
    /// Bytes of code before the probed instruction.
    pub before_bytes: u32,
    /// Bytes of code after its beginning.
    pub after_bytes: u32,
    /// How the caller is found from there, where the probed instruction is in the midst of a function.
    pub to_caller: Rule,
    /// Of a place inside of a function that the one of interest calls, see [`Cookie::is_inner`]: which calls are told there.
    pub inner: InnerCalls,
}
const _: () = assert!(size_of::<ProbeSurroundings>() == 44);

/// Most calls of a function that are told inside of it.
pub const MAX_INNER_CALLS: usize = 4;

/// The calls of a function, by the function of interest, that are told inside of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InnerCalls {
    /// Where they return to, from the probed instruction; 0 for none.
    pub return_distances: [i32; MAX_INNER_CALLS],
    /// How far the called function's return address is below that of the function of interest.
    pub depth_bytes: u16,
    /// A bit for each: whether it is told as well that it gives no block.
    pub tell_failures: u16,
}

/// Number of a register that holds an argument, see [`Cookie`], or [`NO_ARGUMENT`].
pub type ArgumentIndex = u8;
/// The function has no such argument.
pub const NO_ARGUMENT: ArgumentIndex = 0xf;
/// The first register that carries no arguments.
pub const FIRST_KEPT: ArgumentIndex = 6;

/// In a [`Cookie`], in place of a register that holds a block: there is none. It is the stack pointer's number.
const NO_REGISTER: u8 = 4;

/// What a probe needs to know about the function it sits on. It travels in the
/// probe's 64-bit attach cookie, so that a hit needs no look-up:
///
/// ```text
/// bits  0..16  probe id              bits 16..20  argument: size
/// bits 20..24  argument: count       bits 24..28  argument: block
/// bits 28..32  argument: result slot
/// bits 32..40  number of its allocator, 0 if that is not known
/// bits 40..44  number of the register that holds the block, see bit 53; that of the stack pointer: there is none
/// bits 44..48  number of the condition without which it does not, see bit 54
/// bit  48      calls no other allocator function
/// bit  49      the kernel steps through the probed instruction
/// bit  50      an exception can leave it: its return is seen at its `ret` instructions
/// bit  52      its module can free blocks again that were freed, and no probe tells when
/// bit  53      the probed instruction is in the midst of it, and the block that the call gives is known
/// bit  54      the same, if the condition of the jump that it is holds
/// bit  55      it is in the midst of it, and notes what the call was given
/// bit  56      with bit 53: what it was given was noted before
/// bits 57..62  how many words below the return address the stack pointer is
/// bit  62      it is inside of a function that the one of interest calls, and others call as well
/// ```
///
/// An argument is in the register of this number among those that carry arguments or, from [`FIRST_KEPT`] on, those that
/// functions leave as they are: `rbx`, `rbp` and `r12` to `r15`.
///
/// It does not say whose hit it is: a probe can be that of many processes.
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
    pub const fn new(probe: u16, arguments: Arguments) -> Self {
        Self(
            probe as u64
                | (arguments.size as u64 & 0xf) << 16
                | (arguments.count as u64 & 0xf) << 20
                | (arguments.block as u64 & 0xf) << 24
                | (arguments.result_slot as u64 & 0xf) << 28,
        )
    }

    /// The same, of a function that calls no other allocator function.
    #[must_use]
    pub const fn of_leaf(self) -> Self {
        Self(self.0 | 1 << 48)
    }

    /// Whether the function calls no other allocator function.
    #[must_use]
    #[inline(always)]
    pub const fn is_leaf(self) -> bool {
        self.0 >> 48 & 1 != 0
    }

    /// The same, at an instruction that the kernel does not emulate.
    #[must_use]
    pub const fn of_stepped(self) -> Self {
        Self(self.0 | 1 << 49)
    }

    /// Whether the kernel steps through the probed instruction.
    #[must_use]
    #[inline(always)]
    pub const fn is_stepped(self) -> bool {
        self.0 >> 49 & 1 != 0
    }

    /// The same, of a function that an exception can leave.
    #[must_use]
    pub const fn of_throwing(self) -> Self {
        Self(self.0 | 1 << 50)
    }

    /// Whether an exception can leave the function: then it has no return probe, and what it
    /// returns is seen at the instruction by which it does.
    #[must_use]
    #[inline(always)]
    pub const fn can_throw(self) -> bool {
        self.0 >> 50 & 1 != 0
    }

    /// The same, of a function whose module can free blocks again without notice.
    #[must_use]
    pub const fn of_freeing_again_unnoticed(self) -> Self {
        Self(self.0 | 1 << 52)
    }

    /// Whether the function's module can, in threads that nothing has told the end of, free blocks again that
    /// were freed already.
    #[must_use]
    #[inline(always)]
    pub const fn frees_again_unnoticed(self) -> bool {
        self.0 >> 52 & 1 != 0
    }

    /// The same, at an instruction where the block is in this register, or where it is known that there will be none, if this
    /// condition holds.
    #[must_use]
    pub const fn of_giving(self, register: Option<u8>, condition: Option<u8>) -> Self {
        let register = match register {
            Some(register) => register,
            None => NO_REGISTER,
        };
        let given = (register as u64 & 0xf) << 40 | 1 << 53;
        let condition = match condition {
            Some(condition) => (condition as u64 & 0xf) << 44 | 1 << 54,
            None => 0,
        };
        Self(self.0 | given | condition)
    }

    /// The same, of a call that was noted before.
    #[must_use]
    pub const fn of_noted(self) -> Self {
        Self(self.0 | 1 << 56)
    }

    /// The same, at an instruction that only notes what a call was given.
    #[must_use]
    pub const fn of_noting(self) -> Self {
        Self(self.0 | 1 << 55)
    }

    /// The same, where the stack pointer is so far below the return address: less than 256 bytes.
    #[must_use]
    pub const fn of_depth(self, depth_bytes: u16) -> Self {
        Self(self.0 | (depth_bytes as u64 >> 3 & 0x1f) << 57)
    }

    /// The same, inside of a function that the one of interest calls.
    #[must_use]
    pub const fn of_inner(self) -> Self {
        Self(self.0 | 1 << 62)
    }

    /// Whether it is inside of a function that the one of interest calls: only some calls of that are to be told.
    #[must_use]
    #[inline(always)]
    pub const fn is_inner(self) -> bool {
        self.0 >> 62 & 1 != 0
    }

    /// How far below the return address the stack pointer is at the probed instruction.
    #[must_use]
    #[inline(always)]
    pub const fn depth_bytes(self) -> u64 {
        (self.0 >> 57 & 0x1f) << 3
    }

    /// Whether the probe only notes what the call was given: another one tells what it gives.
    #[must_use]
    #[inline(always)]
    pub const fn notes(self) -> bool {
        self.0 >> 55 & 1 != 0
    }

    /// Whether another probe has noted what the call was given.
    #[must_use]
    #[inline(always)]
    pub const fn was_noted(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// Whether the block that a call gives is known at the probed instruction, so that nothing of its return is
    /// of interest.
    #[must_use]
    #[inline(always)]
    pub const fn gives_at_once(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    /// The number of the register that it is in; another one if there is no block.
    #[must_use]
    #[inline(always)]
    pub const fn register(self) -> u8 {
        (self.0 >> 40) as u8 & 0xf
    }

    /// The number of the condition without which the call goes another way; none if there is none.
    #[must_use]
    #[inline(always)]
    pub const fn condition(self) -> Option<u8> {
        if self.0 >> 54 & 1 == 0 { None } else { Some((self.0 >> 44) as u8 & 0xf) }
    }

    /// The same, of a function of this allocator.
    #[must_use]
    pub const fn of_allocator(self, number: u8) -> Self {
        Self(self.0 | (number as u64) << 32)
    }

    /// Number of the function's allocator; 0 if it is not known which one it is of.
    #[must_use]
    #[inline(always)]
    pub const fn allocator(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// Id of the probe, never 0.
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
}
