//! Spares walks that would go as the one before.
//!
//! A step depends on the frame that it goes from, on the tables, and on the words of the stack that it
//! reads. So if a walk begins where the last one of the thread did, with the same
//! registers and tables, and all words that this one read are still as they were, it
//! makes the same steps to the same end. Where a walk looked at anything else (code bytes, the
//! kernel's list of return addresses) or did not end as complete, it is not remembered.
//!
//! The words are noted when a walk begins as the one before for the second time, so that stacks which do not
//! repeat cost a few comparisons and no more.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user_bytes;
use memscope_common::{
    control::{MEMO_STACK_WORDS, MEMO_WORDS, WalkMemo, WalkState},
    record::OUTCOME_COMPLETE,
};

use crate::emit;

/// What is known of a walk before it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// Nothing.
    Nothing,
    /// The last one began as this does: what this one reads is worth noting.
    Begin,
    /// How it ends, which is now in place.
    All,
}

/// Words that are compared without a look at how many there are.
const WORDS_AT_ONCE: usize = 8;

/// Looks whether this walk begins as the last one did and would find the same words.
#[inline(always)]
pub(crate) fn recall(state: *mut WalkState, space: u64, seed: u64) -> Recalled {
    // SAFETY: `state` is this thread's own live map value.
    let (memo, walk) = unsafe { (&mut (*state).memo, &mut (*state).walk) };
    let frame = &walk.frame;
    let is_same = memo.begin[0] == frame.pc_avma
        && memo.begin[1] == frame.sp_avma
        && memo.begin[2] == frame.bp
        && memo.begin[3] == frame.bx.word
        && memo.tables[0] == space
        && memo.tables[1] == seed;
    if !is_same {
        memo.begin[0] = frame.pc_avma;
        memo.begin[1] = frame.sp_avma;
        memo.begin[2] = frame.bp;
        memo.begin[3] = frame.bx.word;
        memo.tables[0] = space;
        memo.tables[1] = seed;
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
    if !finds_the_same(state) {
        memo.word_count = 0;
        return Recalled::Nothing;
    }
    walk.hash = memo.hash;
    walk.frame_count = memo.frame_count;
    walk.flags = memo.flags;
    walk.frame.sp_avma = memo.end_sp_avma;
    walk.outcome = OUTCOME_COMPLETE as u64;
    Recalled::All
}

#[inline(always)]
fn finds_the_same(state: *mut WalkState) -> bool {
    // SAFETY: `state` is this thread's own live map value.
    let memo = unsafe { &mut (*state).memo };
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
pub(crate) fn note(state: *mut WalkState, avma: u64, value: u64) {
    // SAFETY: `state` is this thread's own live map value.
    let memo = unsafe { &mut (*state).memo };
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
pub(crate) fn spoil(state: *mut WalkState) {
    // SAFETY: `state` is this thread's own live map value.
    unsafe { (*state).memo.spoilt |= 1 };
}

/// After a walk whose words were noted.
#[inline(always)]
pub(crate) fn keep(state: *mut WalkState, tables_read_ns: u64) {
    // SAFETY: `state` is this thread's own live map value.
    let (memo, walk) = unsafe { (&mut (*state).memo, &(*state).walk) };
    if walk.outcome != OUTCOME_COMPLETE as u64
        || memo.word_count > MEMO_WORDS as u64
        || memo.spoilt != 0
    {
        memo.word_count = 0;
        memo.spoilt = 1;
        return;
    }
    memo.hash = walk.hash;
    memo.frame_count = walk.frame_count;
    memo.flags = walk.flags;
    memo.end_sp_avma = walk.frame.sp_avma;
    memo.tables_read_ns = tables_read_ns;
    // SAFETY: as above.
    memo.first_frame_avma = unsafe { (*state).stack.frames_avma[0] };
    // The last group is compared as a whole.
    for next in 0..WORDS_AT_ONCE {
        let index = (memo.word_count as usize + next) & (MEMO_WORDS - 1);
        memo.places[index] = memo.places[0];
        memo.values[index] = memo.values[0];
    }
}
