//! Decides which blocks are recorded, once for each, as its call begins.
//!
//! The blocks that were drawn are remembered, so that of all others nothing is recorded: not
//! their allocation, and not their end.

use core::ptr::read_volatile;

use memscope_common::control::{
    COUNTER_SAMPLE_TABLE_FULL, FOLLOW_NEW, FOLLOW_NOTHING, FOLLOW_OLD, SIZE_CLASSES, ThreadState,
};
use memscope_ebpf::{gap_bytes, mix, next_random, random_seed};

use crate::{
    emit,
    maps::{
        EXACT, GAPS, NUMBER_OF_SEEDS, NUMBERS, SAMPLED, SAMPLED_GROUPS, SAMPLED_NEAR, SAMPLING,
    },
    settings,
};

/// What of a call is recorded: `FOLLOW_` bits. `block_avma` is the block given to it, or 0. If
/// that was drawn it is forgotten now, as another thread may get its address before the call
/// returns.
#[inline(always)]
pub(crate) fn decide(
    state: &mut ThreadState,
    target: u16,
    size_bytes: u64,
    block_avma: u64,
) -> u64 {
    count(size_bytes);
    let is_old = block_avma != 0 && forget(target, block_avma);
    // It only ends a block that nobody knows.
    let gives_none = block_avma != 0 && size_bytes == 0;
    let is_new = !gives_none && is_drawn(state, size_bytes);
    if !gives_none {
        state.allocated_since = u32::from(!is_new);
    }
    let new = if is_new { FOLLOW_NEW } else { FOLLOW_NOTHING };
    new | if is_old { FOLLOW_OLD } else { FOLLOW_NOTHING }
}

#[inline(always)]
fn is_drawn(state: &mut ThreadState, size_bytes: u64) -> bool {
    let (Some(sampling), Some(gaps)) = (SAMPLING.get_ptr(0), GAPS.get(0)) else { return false };
    // SAFETY: an element of an array map, whose words are read whole.
    let (interval_bytes, generation) = unsafe {
        (
            read_volatile(&raw const (*sampling).interval_bytes),
            read_volatile(&raw const (*sampling).generation),
        )
    };
    let draw = |state: &mut ThreadState| {
        state.random = next_random(state.random);
        state.until_sample_bytes = gap_bytes(gaps, state.random, interval_bytes);
        state.interval_bytes = interval_bytes;
    };
    if state.sampling_generation != generation {
        if state.random == 0 {
            state.random = seed();
        }
        state.sampling_generation = generation;
        draw(state);
    }
    let bytes = size_bytes.max(1);
    if state.until_sample_bytes > bytes {
        state.until_sample_bytes -= bytes;
        return false;
    }
    draw(state);
    true
}

/// Where a thread's random numbers begin: by how many had begun before it. By its stack, threads that
/// come one after the other would all draw the same.
#[inline(always)]
fn seed() -> u64 {
    let before = NUMBERS.get_ptr_mut(NUMBER_OF_SEEDS).map_or(0, emit::next);
    random_seed(settings::seed(), before)
}

/// Whether nothing of the call under way would have been recorded.
#[inline(always)]
pub(crate) fn is_unrecorded(state: &ThreadState) -> bool {
    settings::samples() != 0 && state.follow == FOLLOW_NOTHING
}

/// Counts a call that asks for a block.
#[inline(always)]
fn count(size_bytes: u64) {
    let class = bits_of(size_bytes) as usize;
    if let Some(exact) = EXACT.get_ptr_mut(0)
        && class < SIZE_CLASSES
    {
        // SAFETY: this CPU's map value; the index is below the length of both arrays.
        unsafe {
            emit::add(&raw mut (*exact).calls[class], 1);
            emit::add(&raw mut (*exact).bytes[class], size_bytes);
        }
    }
}

/// How many bits a number has: 0 has none. In steps, as BPF cannot count them.
#[inline(always)]
fn bits_of(value: u64) -> u64 {
    let (mut rest, mut bits) = (value, 0);
    for step in [32, 16, 8, 4, 2, 1] {
        if rest >> step != 0 {
            rest >>= step;
            bits += step;
        }
    }
    bits + rest
}

#[inline(always)]
fn key(target: u16, address_avma: u64) -> u64 {
    address_avma ^ u64::from(target) << 48
}

/// How many blocks there can be that were drawn and whose keys are alike in a part of their hash.
#[inline(always)]
fn near(key: u64) -> Option<*mut u64> {
    SAMPLED_NEAR.get_ptr_mut((mix(0, key) >> 32) as u32 & (SAMPLED_GROUPS - 1))
}

/// A block that was drawn begins; false if there is no room to remember it, which is counted.
#[inline(always)]
pub(crate) fn remember(target: u16, address_avma: u64) -> bool {
    let key = key(target, address_avma);
    // Before it is there, so that who looks never finds less.
    if let Some(near) = near(key) {
        emit::add(near, 1);
    }
    let is_remembered = SAMPLED.insert(key, window(), 0).is_ok();
    if !is_remembered {
        one_less_near(key);
        emit::lose(COUNTER_SAMPLE_TABLE_FULL);
    }
    is_remembered
}

#[inline(always)]
fn one_less_near(key: u64) {
    if let Some(near) = near(key) {
        emit::add(near, u64::MAX);
    }
}

/// The window that the targets are observed in.
#[inline(always)]
fn window() -> u32 {
    if settings::counts_cost() == 0 {
        return 0;
    }
    // SAFETY: an element of an array map, whose words are read whole.
    SAMPLING
        .get_ptr(0)
        .map_or(0, |sampling| unsafe { read_volatile(&raw const (*sampling).window) })
}

/// Whether a block was drawn, in this window; now it ends. Most were not: they are looked for where that costs least.
#[inline(always)]
pub(crate) fn forget(target: u16, address_avma: u64) -> bool {
    let key = key(target, address_avma);
    // SAFETY: an element of an array map, whose words are read whole.
    if near(key).is_some_and(|near| unsafe { read_volatile(near) } == 0) {
        return false;
    }
    // Before it is removed, which takes a lock.
    // SAFETY: read at once; the value of another block of this key, if it is one by now, is
    // as good.
    let Some(drawn_in) = (unsafe { SAMPLED.get(key) }).copied() else { return false };
    if SAMPLED.remove(key).is_err() {
        return false;
    }
    one_less_near(key);
    drawn_in == window()
}

/// Counts the free of a block that was not drawn.
#[inline(always)]
pub(crate) fn drop_free() {
    if let Some(exact) = EXACT.get_ptr_mut(0) {
        // SAFETY: this CPU's map value.
        emit::add(unsafe { &raw mut (*exact).frees_dropped }, 1);
    }
}
