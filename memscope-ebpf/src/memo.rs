//! Spares walks that would go as one before.
//!
//! A step depends on the frame that it goes from, on the tables, and on words of the stack: return addresses, and
//! registers that functions have saved. So if a walk begins where another one did, with the same tables, and all words that
//! this one depended on are still as they were, it makes the same steps to the same end, whichever thread it is. Most
//! functions are found by the stack pointer alone; so what `rbp` and `rbx` are, and what of them was saved, is asked
//! for only where a step depended on it: they mostly hold data, which differs from call to call. Where a
//! walk looked at anything else (code bytes, the kernel's list of return addresses) or did not end as complete, it is
//! not remembered.
//!
//! Each walk is noted, in the place of the one before that was there: noting costs little beside the steps.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, generated::bpf_probe_read_user as read_user_bytes,
};
use memscope_common::{
    control::{
        CALLER_WORDS, MAX_TOP_WORDS, MEMO_BP, MEMO_BP_FIRST, MEMO_BP_NOTED, MEMO_BP_READ, MEMO_BX,
        MEMO_CALLERS, MEMO_GAP_WORDS, MEMO_ROOM_WORDS, MEMO_ROOMS, MEMO_SLOTS, MEMO_WINDOWS,
        MEMO_WORDS, MEMOS, MemoRoom, MemoWindow, TOP_WORDS, ThreadState, WalkMemo,
    },
    record::{OUTCOME_COMPLETE, STACK_TABLES_OLD},
    unwind::Walk,
};
use memscope_ebpf::mix;

use crate::{
    emit,
    maps::{MEMO_RECENT, MEMO_ROOM, MEMO_SLOT, WALK_MEMOS},
};

/// Words that are compared without a look at how many there are.
const WORDS_AT_ONCE: usize = 8;
/// So many can be noted that there is room for what the last group has more.
const MOST_WORDS: u64 = (MEMO_WORDS - WORDS_AT_ONCE) as u64;

/// Where a walk begins, as in [`WalkMemo::begin`] and [`WalkMemo::registers`].
pub(crate) struct Begin {
    pub(crate) pc_avma: u64,
    pub(crate) sp_avma: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) space: u64,
    pub(crate) seed: u64,
}

/// The number of the stack of such a walk, in the upper half; or 0, and in the lower half where the walk is to be noted, for
/// [`noted_in`]. Never inlined: a program and the functions that it is calling may take up 512 bytes of stack together
/// (`MAX_BPF_STACK`; `check_max_stack_depth`, kernel/bpf/verifier.c), and what is needed here is not needed in the walk.
#[inline(never)]
pub(crate) fn remembered(begin: &Begin, thread: &mut ThreadState) -> u64 {
    let Some(room) = Room::read(begin, thread.top_end_avma) else { return 0 };
    let recent = recent_of(set_of(begin, &room));
    let other = recent ^ 1;
    let mut found = look(begin, recent, &room);
    let mut place = recent;
    if found < FIRST_NUMBER {
        let second = look_again(begin, other, room.words);
        if second >= FIRST_NUMBER || (second != MEMO_BUSY && found != MEMO_IN_VAIN) {
            (found, place) = (second, other);
        }
    }
    room.release();
    let is_found = found >= FIRST_NUMBER;
    let is_prepared = found == MEMO_UNLIKE && prepare(begin, place);
    // Not at each hit: eight sets share a cache line, and other CPUs have theirs in it.
    if place != recent && (is_found || is_prepared) {
        note_recent(place);
    }
    if is_found {
        thread.top_end_avma = begin.sp_avma.wrapping_add(8 * (found & u64::from(u32::MAX)));
        return found & !u64::from(u32::MAX);
    }
    if is_prepared { u64::from(place) + 1 } else { 0 }
}

/// The memo that a walk is to be noted in, which is claimed; else one that nobody reads. So walks are all noted, and verifiers have
/// to follow one that is only.
#[inline(always)]
pub(crate) fn noted_in(place: u32) -> Option<*mut WalkMemo> {
    // SAFETY: the helper takes nothing.
    let unread = MEMOS + (unsafe { bpf_get_smp_processor_id() } & (MEMO_ROOMS - 1));
    WALK_MEMOS.get_ptr_mut(if place == 0 { unread } else { place - 1 })
}

/// The end of the stack, while it is looked at.
struct Room {
    place: *mut MemoRoom,
    /// How much was read.
    words: u64,
}

impl Room {
    /// That of this CPU, which stays the same as long as a program runs, with so many words read into it.
    #[inline(always)]
    fn in_use(words: u64) -> Option<Self> {
        // SAFETY: the helper takes nothing.
        let index = unsafe { bpf_get_smp_processor_id() } & (MEMO_ROOMS - 1);
        Some(Self { place: MEMO_ROOM.get_ptr_mut(index)?, words })
    }

    /// Reads the stack as far as was needed before: walks of a thread end at the same place, wherever they begin. None if
    /// that fails or the room is in use, by a program that was interrupted or one on another CPU.
    #[inline(always)]
    fn read(begin: &Begin, end_avma: u64) -> Option<Self> {
        let words = end_avma.wrapping_sub(begin.sp_avma) >> 3;
        let words = words.clamp(TOP_WORDS as u64, MAX_TOP_WORDS as u64);
        let room = Self::in_use(words)?;
        // SAFETY: an element of an array map, which is never removed.
        if emit::exchange(unsafe { &raw mut (*room.place).busy }, 1) != 0 {
            return None;
        }
        if room.read_top(begin, words) {
            return Some(room);
        }
        // Near the end of the stack there may be less.
        let room = Self { words: TOP_WORDS as u64, ..room };
        if words > TOP_WORDS as u64 && room.read_top(begin, TOP_WORDS as u64) {
            return Some(room);
        }
        room.release();
        None
    }

    #[inline(always)]
    fn read_top(&self, begin: &Begin, words: u64) -> bool {
        self.read_into(0, words, begin.sp_avma)
    }

    /// Reads a piece of the stack to a place in the room.
    #[inline(always)]
    fn read_into(&self, first: u64, words: u64, avma: u64) -> bool {
        let bytes = ((words.wrapping_sub(1) & (MEMO_ROOM_WORDS as u64 - 1)) + 1) * 8;
        let first = first as usize & (MEMO_ROOM_WORDS - 1);
        // SAFETY: the helper checks the user address; from any of the first words on there is room for that many
        // bytes. It is claimed.
        let failed = unsafe {
            read_user_bytes(
                (&raw mut (*self.place).words).cast::<u64>().add(first).cast::<c_void>(),
                bytes as u32,
                avma as *const c_void,
            )
        };
        failed == 0
    }

    #[inline(always)]
    fn release(&self) {
        // SAFETY: it is claimed; on x86-64 others see writes in order.
        unsafe { write_volatile(&raw mut (*self.place).busy, 0) };
    }

    /// A word that was read.
    #[inline(always)]
    fn word(&self, mut place: u64) -> u64 {
        // As in `read` of the walk.
        // SAFETY: it changes nothing but its operand.
        unsafe {
            asm!(
                "{0} &= {mask}",
                inout(reg) place,
                mask = const MEMO_ROOM_WORDS - 1,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: the mask is the last word that is used.
        unsafe { (&raw const (*self.place).words).cast::<u64>().add(place as usize).read() }
    }
}

/// A memo, to be used until it is released; none if somebody else uses it now: a thread on another CPU, or one that was
/// interrupted.
#[inline(always)]
fn claim(index: u32) -> Option<*mut WalkMemo> {
    let memo = WALK_MEMOS.get_ptr_mut(index)?;
    // SAFETY: an element of an array map, which is never removed.
    let was_busy = emit::exchange(unsafe { &raw mut (*memo).busy }, 1);
    (was_busy == 0).then_some(memo)
}

/// Bits of a slot's word that say how many words lie below the return address, and one more; above them is
/// the address of the code.
const SLOT_BITS: u32 = 16;

/// The first of the two places of such a walk's memo: by where it begins, and by who has called the functions there, as far as it is known
/// where that lies. One function is called by many, and walks that begin alike mostly differ soon. This only finds a
/// memo: if it is not the right one, its words are others.
#[inline(always)]
fn set_of(begin: &Begin, room: &Room) -> u32 {
    let mut hash = mix(mix(begin.seed, begin.pc_avma), begin.sp_avma);
    let mut pc_avma = begin.pc_avma;
    let mut next = 0;
    let most = room.words.min(CALLER_WORDS);
    for _ in 0..MEMO_CALLERS {
        let Some(slot) = MEMO_SLOT.get_ptr(slot_of(pc_avma)) else { break };
        // SAFETY: an element of an array map, whose words are read and written whole.
        let word = unsafe { read_volatile(slot) };
        next += word & ((1 << SLOT_BITS) - 1);
        // What is read each time, and not this time: the same walk has one place. As far as it goes is read, but perhaps the first
        // times.
        if word >> SLOT_BITS != pc_avma & (u64::MAX >> SLOT_BITS) || next > most {
            break;
        }
        pc_avma = room.word(next - 1);
        hash = mix(hash, pc_avma);
    }
    (hash >> 32) as u32 & (MEMOS - 2)
}

/// Which of the two places of a set was used last: walks that only differ far from where they begin have one each, and the
/// other one is given away.
#[inline(always)]
fn recent_of(set: u32) -> u32 {
    // SAFETY: an element of an array map, whose words are read and written whole.
    let last = MEMO_RECENT.get_ptr(set >> 1).map_or(0, |last| unsafe { read_volatile(last) });
    set | (last & 1) as u32
}

#[inline(always)]
fn note_recent(place: u32) {
    if let Some(last) = MEMO_RECENT.get_ptr_mut(place >> 1) {
        // SAFETY: as in `recent_of`.
        unsafe { write_volatile(last, u64::from(place & 1)) };
    }
}

/// A step has found its return address there, by the stack pointer alone.
#[inline(always)]
pub(crate) fn note_slot(pc_avma: u64, sp_avma: u64, slot_avma: u64) {
    let distance = (slot_avma.wrapping_sub(sp_avma) >> 3) + 1;
    if distance >> SLOT_BITS == 0
        && let Some(slot) = MEMO_SLOT.get_ptr_mut(slot_of(pc_avma))
    {
        // SAFETY: as above.
        unsafe { write_volatile(slot, pc_avma << SLOT_BITS | distance) };
    }
}

#[inline(always)]
fn slot_of(pc_avma: u64) -> u32 {
    (mix(0, pc_avma) >> 32) as u32 & (MEMO_SLOTS - 1)
}

/// Lets others use a memo.
#[inline(always)]
pub(crate) fn release(memo: *mut WalkMemo) {
    // SAFETY: it is claimed. On x86-64 others see writes in order.
    unsafe { write_volatile(&raw mut (*memo).busy, 0) };
}

/// Nothing is known there of such a walk.
const MEMO_UNLIKE: u64 = 0;
/// It was tried to note it there, in vain.
const MEMO_IN_VAIN: u64 = 1;
/// Somebody else uses the place.
const MEMO_BUSY: u64 = 2;
/// The number of the walk's stack and, in the lower half, how much of the stack it depended on.
const FIRST_NUMBER: u64 = 1 << 32;

/// Looks whether this walk begins as the one remembered did and would find the same words; one of the constants above.
#[inline(always)]
fn look(begin: &Begin, place: u32, room: &Room) -> u64 {
    let Some(memo) = claim(place) else { return MEMO_BUSY };
    let found = recall(memo, place, begin, room);
    release(memo);
    found
}

/// The same. Never inlined, as it is less frequent, and verified once.
#[inline(never)]
fn look_again(begin: &Begin, place: u32, words: u64) -> u64 {
    Room::in_use(words).map_or(MEMO_BUSY, |room| look(begin, place, &room))
}

#[inline(always)]
fn recall(memo: *mut WalkMemo, place: u32, begin: &Begin, room: &Room) -> u64 {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    let is_same = memo.begin[0] == begin.pc_avma
        && memo.begin[1] == begin.sp_avma
        && memo.begin[2] == begin.space
        && memo.begin[3] == begin.seed;
    if !is_same {
        return MEMO_UNLIKE;
    }
    if memo.spoilt != 0 {
        memo.spoilt -= 1;
        return MEMO_IN_VAIN;
    }
    let has_registers = (memo.depends_on & MEMO_BP == 0 || memo.registers[0] == begin.rbp)
        && (memo.depends_on & MEMO_BX == 0 || memo.registers[1] == begin.rbx);
    if memo.word_count != 0
        && has_registers
        && read_rest(memo, place, begin, room)
        && difference_at(place) == 0
    {
        return memo.number << 32 | memo.top_words & u64::from(u32::MAX);
    }
    MEMO_UNLIKE
}

/// Claims the place for this walk, if nobody else uses it.
#[inline(always)]
fn prepare(begin: &Begin, place: u32) -> bool {
    let Some(memo) = claim(place) else { return false };
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    memo.begin[0] = begin.pc_avma;
    memo.begin[1] = begin.sp_avma;
    memo.begin[2] = begin.space;
    memo.begin[3] = begin.seed;
    memo.registers[0] = begin.rbp;
    memo.registers[1] = begin.rbx;
    emit::clear(&mut memo.word_count);
    emit::clear(&mut memo.spoilt);
    emit::clear(&mut memo.depends_on);
    emit::clear(&mut memo.window_count);
    memo.top_words = TOP_WORDS as u64;
    memo.bp_state = MEMO_BP_FIRST;
    true
}

/// Reads what else of the stack the memo at this place speaks of.
#[inline(always)]
fn read_rest(memo: &WalkMemo, place: u32, begin: &Begin, room: &Room) -> bool {
    (memo.top_words <= room.words || room.read_top(begin, memo.top_words))
        && (memo.window_count == 0 || read_windows(place) != 0)
}

/// A memo that the caller's caller has claimed, and the room that it has read the stack into.
#[inline(always)]
fn claimed_at<'a>(place: u32) -> Option<(&'a WalkMemo, Room)> {
    let memo = WALK_MEMOS.get_ptr(place)?;
    // SAFETY: an element of an array map, which is never removed, and claimed.
    Some((unsafe { &*memo }, Room::in_use(0)?))
}

/// Not 0 if that could be read. A function as the one below.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_windows(place: u32) -> u64 {
    let Some((memo, room)) = claimed_at(place) else { return 0 };
    for (index, window) in memo.windows.iter().enumerate() {
        if index as u64 >= memo.window_count {
            break;
        }
        if !room.read_into(window.first, window.words, window.start_avma) {
            return 0;
        }
    }
    1
}

/// Not 0 if any word of the memo at this place is another than it was. A function with a name of its own, which the verifier looks at
/// once, and not once for each way here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn difference_at(place: u32) -> u64 {
    let Some((memo, room)) = claimed_at(place) else { return 1 };
    let mut difference = 0;
    // A loop of the program's own, as each call back from a helper costs more than a group.
    for group in 0..MEMO_WORDS / WORDS_AT_ONCE {
        if (group * WORDS_AT_ONCE) as u64 >= memo.word_count || difference != 0 {
            break;
        }
        difference |= difference_of(memo, &room, group * WORDS_AT_ONCE);
    }
    difference
}

/// Whether any of some words is another than it was: not 0.
#[inline(always)]
fn difference_of(memo: &WalkMemo, room: &Room, first: usize) -> u64 {
    let mut difference = 0;
    for next in 0..WORDS_AT_ONCE {
        let index = (first + next) & (MEMO_WORDS - 1);
        difference |= room.word(memo.places[index].into()) ^ memo.values[index];
    }
    difference
}

/// Notes a word that a step depends on.
#[inline(always)]
pub(crate) fn note(memo: *mut WalkMemo, avma: u64, value: u64) {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    let place = place_of(memo, avma);
    if place >= MEMO_ROOM_WORDS as u64 {
        memo.spoilt = 1;
        return;
    }
    let index = memo.word_count as usize & (MEMO_WORDS - 1);
    memo.places[index] = place as u16;
    memo.values[index] = value;
    memo.word_count += 1;
}

/// The place of a word in the pieces of the stack, of which one is made longer for it or a new one begins; beyond
/// the room if there is none.
#[inline(always)]
fn place_of(memo: &mut WalkMemo, avma: u64) -> u64 {
    const NOWHERE: u64 = MEMO_ROOM_WORDS as u64;
    let from_end = avma.wrapping_sub(memo.begin[1]);
    let most = (memo.top_words + MEMO_GAP_WORDS as u64).min(MAX_TOP_WORDS as u64);
    if from_end & 7 == 0 && from_end >> 3 < most {
        memo.top_words = memo.top_words.max((from_end >> 3) + 1);
        return from_end >> 3;
    }
    let count = memo.window_count;
    let last = &mut memo.windows[count.wrapping_sub(1) as usize & (MEMO_WINDOWS - 1)];
    let end = last.first + last.words;
    let distance = avma.wrapping_sub(last.start_avma);
    if count != 0 && distance & 7 == 0 && distance >> 3 < last.words + MEMO_GAP_WORDS as u64 {
        last.words = last.words.max((distance >> 3) + 1);
        return last.first + (distance >> 3);
    }
    let first = if count == 0 { MAX_TOP_WORDS as u64 } else { end };
    if count >= MEMO_WINDOWS as u64 || first >= NOWHERE {
        return NOWHERE;
    }
    memo.windows[count as usize & (MEMO_WINDOWS - 1)] =
        MemoWindow { start_avma: avma, first, words: 1 };
    memo.window_count = count + 1;
    first
}

/// A walk has read the caller's `rbp`.
#[inline(always)]
pub(crate) fn note_bp(memo: *mut WalkMemo, avma: u64, value: u64) {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    memo.bp_state = MEMO_BP_READ;
    memo.bp_avma = avma;
    memo.bp = value;
}

/// The next step depends on `rbp`.
#[inline(always)]
pub(crate) fn depend_on_bp(memo: *mut WalkMemo) {
    // SAFETY: it is claimed.
    let (state, avma, bp) = unsafe { ((*memo).bp_state, (*memo).bp_avma, (*memo).bp) };
    if state == MEMO_BP_FIRST {
        // SAFETY: as above.
        unsafe { (*memo).depends_on |= MEMO_BP };
    } else if state == MEMO_BP_READ {
        note(memo, avma, bp);
        // SAFETY: as above.
        unsafe { (*memo).bp_state = MEMO_BP_NOTED };
    }
}

/// The next step depends on what `rbx` was at the begin.
#[inline(always)]
pub(crate) fn depend_on_bx(memo: *mut WalkMemo) {
    // SAFETY: it is claimed.
    unsafe { (*memo).depends_on |= MEMO_BX };
}

/// A walk has looked at what is not noted.
#[inline(always)]
pub(crate) fn spoil(memo: *mut WalkMemo) {
    // SAFETY: it is claimed.
    unsafe { (*memo).spoilt = 1 };
}

/// So often a place is passed over whose walk could not be remembered, until it is tried again: another walk may
/// begin there.
const SPOILT_TIMES: u64 = 64;

/// After a walk whose words were noted. `number` is that of its stack, if its frames were sent, else 0. By old tables it
/// is to be copied each time.
#[inline(always)]
pub(crate) fn keep(memo: *mut WalkMemo, walk: &Walk, number: u64) {
    // SAFETY: it is claimed.
    let memo = unsafe { &mut *memo };
    if walk.outcome != OUTCOME_COMPLETE as u64
        || walk.flags & u64::from(STACK_TABLES_OLD) != 0
        || memo.word_count > MOST_WORDS
        || memo.spoilt != 0
        || number == 0
    {
        memo.word_count = 0;
        memo.spoilt = SPOILT_TIMES;
        return;
    }
    memo.number = number;
    // The last group is compared as a whole.
    for next in 0..WORDS_AT_ONCE {
        let index = (memo.word_count as usize + next) & (MEMO_WORDS - 1);
        memo.places[index] = memo.places[0];
        memo.values[index] = memo.values[0];
    }
}
