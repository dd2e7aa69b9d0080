//! Gives numbers to stacks, and knows of which the frames were sent.
//!
//! A word of the table says three things of a stack: bits 0 to 27 its number, bit 28 whether
//! its frames were sent, from bit 29 on its tag, which together with the word's place is a
//! part of its identity.

use core::{
    arch::asm,
    ptr::{read_volatile, write_volatile},
};

use memscope_common::record::{FIRST_ONCE_NUMBER, MAX_STACK_NUMBER};

use crate::{
    emit,
    maps::{
        NUMBER_OF_COPIES, NUMBER_OF_STACKS, NUMBERS, SENT_GROUP_WORDS, SENT_STACKS, SENT_WORDS,
        SentStacks,
    },
};

const NUMBER_MASK: u64 = MAX_STACK_NUMBER - 1;
const SENT: u64 = MAX_STACK_NUMBER;
const TAG_MASK: u64 = !(NUMBER_MASK | SENT);

/// A stack that has a number.
#[derive(Clone, Copy)]
pub(crate) struct Numbered {
    /// 0 if there are no numbers left.
    pub(crate) number: u64,
    /// Whether its frames need not be sent.
    pub(crate) is_sent: bool,
    place: usize,
    tag: u64,
}

/// The number of a stack, a new one if it has none.
#[inline(always)]
pub(crate) fn number_of(identity: u64, time_ns: u64) -> Numbered {
    let mut numbered = Numbered { number: 0, is_sent: false, place: 0, tag: identity & TAG_MASK };
    let Some(table) = SENT_STACKS.get_ptr_mut(0) else { return numbered };
    // Low bits, as the tag is the high ones.
    let group = identity as usize & (SENT_WORDS - SENT_GROUP_WORDS);
    let mut vacant = group + (time_ns >> 10) as usize % SENT_GROUP_WORDS;
    for place in group..group + SENT_GROUP_WORDS {
        // SAFETY: the place is one of the table; words are read and written whole.
        let word = unsafe { read_volatile(place_of(table, place)) };
        if word & TAG_MASK == numbered.tag && word & NUMBER_MASK != 0 {
            numbered.number = word & NUMBER_MASK;
            numbered.is_sent = word & SENT != 0;
            numbered.place = place;
            return numbered;
        }
        if word == 0 {
            vacant = place;
        }
    }
    let Some(given) = NUMBERS.get_ptr_mut(NUMBER_OF_STACKS) else { return numbered };
    let number = emit::next(given) + 1;
    if number < FIRST_ONCE_NUMBER {
        numbered.number = number;
        numbered.place = vacant;
        // SAFETY: as above.
        unsafe { write_volatile(place_of(table, vacant), numbered.tag | number) };
    }
    numbered
}

/// A number for a single use.
#[inline(always)]
pub(crate) fn number_for_once() -> u64 {
    let Some(given) = NUMBERS.get_ptr_mut(NUMBER_OF_COPIES) else { return 0 };
    FIRST_ONCE_NUMBER + emit::next(given) % (MAX_STACK_NUMBER - FIRST_ONCE_NUMBER)
}

impl Numbered {
    /// Its frames were sent. If another stack has taken its place meanwhile, that one gets
    /// another number when next seen, and is sent again.
    #[inline(always)]
    pub(crate) fn mark_sent(self) {
        if let Some(table) = SENT_STACKS.get_ptr_mut(0) {
            // SAFETY: as in `number_of`.
            unsafe { write_volatile(place_of(table, self.place), self.tag | SENT | self.number) };
        }
    }
}

/// A place of the table, by its index.
#[inline(always)]
fn place_of(table: *const SentStacks, index: usize) -> *mut u64 {
    let mut offset = index * 8;
    // LLVM sees that the mask changes nothing and drops it, and makes of the sums before
    // it an `or`. Verifiers before Linux 6.10 know nothing of the `or` of two registers.
    // SAFETY: it changes nothing but its operand.
    unsafe {
        asm!(
            "{0} &= {mask}",
            inout(reg) offset,
            mask = const (SENT_WORDS - 1) * 8,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: the mask is the offset of the last place.
    unsafe { (&raw const (*table).words).cast::<u8>().add(offset).cast::<u64>().cast_mut() }
}
