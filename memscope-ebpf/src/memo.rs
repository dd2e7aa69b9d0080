//! Spares walks that would go as one before.
//!
//! A step depends on the frame that it goes from, on the tables, and on the words of the stack that it
//! reads. So if a walk begins where another one did, with the same registers and tables, and
//! all words that this one read are still as they were, it makes the same steps to the same
//! end, whichever thread it is. Where a walk looked at anything else (code bytes, the
//! kernel's list of return addresses) or did not end as complete, it is not remembered.
//!
//! The words are noted when a walk begins as the one before for the second time, so that stacks which do not
//! repeat cost a few comparisons and no more.

use core::{arch::asm, ffi::c_void, ptr::write_volatile};

use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user_bytes;
use memscope_common::{
    control::{MEMO_STACK_WORDS, MEMO_WORDS, MEMOS, WalkMemo},
    record::{OUTCOME_COMPLETE, STACK_TABLES_OLD},
    unwind::Walk,
};
use memscope_ebpf::mix;

use crate::{emit, maps::WALK_MEMOS};

/// What is known of a walk before it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// Nothing.
    Nothing,
    /// One before began as this does: what this one reads is worth noting.
    Begin,
    /// The identity of its stack.
    All(u64),
}

/// Words that are compared without a look at how many there are.
const WORDS_AT_ONCE: usize = 8;

/// Where a walk begins, as in [`WalkMemo::begin`].
pub(crate) struct Begin {
    pub(crate) pc_avma: u64,
    pub(crate) sp_avma: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) space: u64,
    pub(crate) seed: u64,
}

/// The place of such a walk's memo, to be used until it is released; none if somebody else uses
/// it now: a thread on another CPU, or one that was interrupted.
#[inline(always)]
pub(crate) fn claim(begin: &Begin) -> Option<*mut WalkMemo> {
    let hash = mix(mix(begin.seed, begin.pc_avma), begin.sp_avma);
    let memo = WALK_MEMOS.get_ptr_mut((hash >> 32) as u32 & (MEMOS - 1))?;
    // SAFETY: an element of an array map, which is never removed.
    let was_busy = emit::exchange(unsafe { &raw mut (*memo).busy }, 1);
    (was_busy == 0).then_some(memo)
}

/// Lets others use a memo.
#[inline(always)]
pub(crate) fn release(memo: *mut WalkMemo) {
    // SAFETY: it is claimed. On x86-64 others see writes in order.
    unsafe { write_volatile(&raw mut (*memo).busy, 0) };
}

/// Looks whether this walk begins as the one remembered did and would find the same words.
#[inline(always)]
pub(crate) fn recall(memo: *mut WalkMemo, begin: &Begin) -> Recalled {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    let is_same = memo.begin[0] == begin.pc_avma
        && memo.begin[1] == begin.sp_avma
        && memo.begin[2] == begin.rbp
        && memo.begin[3] == begin.rbx
        && memo.begin[4] == begin.space
        && memo.begin[5] == begin.seed;
    if !is_same {
        memo.begin[0] = begin.pc_avma;
        memo.begin[1] = begin.sp_avma;
        memo.begin[2] = begin.rbp;
        memo.begin[3] = begin.rbx;
        memo.begin[4] = begin.space;
        memo.begin[5] = begin.seed;
        emit::clear(&mut memo.word_count);
        emit::clear(&mut memo.spoilt);
        return Recalled::Nothing;
    }
    if memo.spoilt != 0 {
        // It was tried before, in vain.
        return Recalled::Nothing;
    }
    if memo.word_count == 0 {
        emit::clear(&mut memo.place_bits);
        return Recalled::Begin;
    }
    if !finds_the_same(memo) {
        memo.word_count = 0;
        return Recalled::Nothing;
    }
    Recalled::All(memo.identity)
}

#[inline(always)]
fn finds_the_same(memo: &mut WalkMemo) -> bool {
    let bytes = ((memo.place_bits & (MEMO_STACK_WORDS as u64 - 1)) + 1) * 8;
    // SAFETY: the helper checks the user address; there is room for that many bytes.
    let failed = unsafe {
        read_user_bytes(
            (&raw mut memo.stack).cast::<c_void>(),
            bytes as u32,
            memo.begin[1] as *const c_void,
        )
    };
    if failed != 0 {
        return false;
    }
    let mut difference = 0;
    // A loop of the program's own, as each call back from a helper costs more than a group.
    for group in 0..MEMO_WORDS / WORDS_AT_ONCE {
        if (group * WORDS_AT_ONCE) as u64 >= memo.word_count {
            break;
        }
        difference |= difference_of(memo, group * WORDS_AT_ONCE);
    }
    difference == 0
}

/// Whether any of some words is another than it was: not 0.
#[inline(always)]
fn difference_of(memo: &WalkMemo, first: usize) -> u64 {
    let mut difference = 0;
    for next in 0..WORDS_AT_ONCE {
        let index = (first + next) & (MEMO_WORDS - 1);
        let mut place = memo.places[index];
        // As in `read` of the walk.
        // SAFETY: it changes nothing but its operand.
        unsafe {
            asm!("{0} &= 255", inout(reg) place, options(pure, nomem, nostack, preserves_flags));
        }
        // SAFETY: 255 is the last word.
        let now = unsafe { (&raw const memo.stack).cast::<u64>().add(place as usize).read() };
        difference |= now ^ memo.values[index];
    }
    difference
}

/// Notes a word that a walk has read. Without a branch, as each would double what the verifier
/// has to follow.
#[inline(always)]
pub(crate) fn note(memo: *mut WalkMemo, avma: u64, value: u64) {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    let offset = avma.wrapping_sub(memo.begin[1]);
    let place = offset >> 3;
    memo.spoilt |= offset & 7 | place >> MEMO_STACK_WORDS.trailing_zeros();
    let index = memo.word_count as usize & (MEMO_WORDS - 1);
    memo.places[index] = place;
    memo.values[index] = value;
    memo.word_count += 1;
    memo.place_bits |= place;
}

/// A walk has looked at what is not noted.
#[inline(always)]
pub(crate) fn spoil(memo: *mut WalkMemo) {
    // SAFETY: it is claimed.
    unsafe { (*memo).spoilt |= 1 };
}

/// After a walk whose words were noted. By old tables it is to be copied each time.
#[inline(always)]
pub(crate) fn keep(memo: *mut WalkMemo, walk: &Walk, identity: u64) {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    if walk.outcome != OUTCOME_COMPLETE as u64
        || walk.flags & u64::from(STACK_TABLES_OLD) != 0
        || memo.word_count > MEMO_WORDS as u64
        || memo.spoilt != 0
    {
        memo.word_count = 0;
        memo.spoilt = 1;
        return;
    }
    memo.identity = identity;
    // The last group is compared as a whole.
    for next in 0..WORDS_AT_ONCE {
        let index = (memo.word_count as usize + next) & (MEMO_WORDS - 1);
        memo.places[index] = memo.places[0];
        memo.values[index] = memo.values[0];
    }
}
