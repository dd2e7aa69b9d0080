//! State of each thread, found without a call.
//!
//! A thread is known by where the kernel keeps the registers of its user code: at the end of
//! its kernel stack (`task_pt_regs`), which it shares with no other thread, from its begin to
//! its end. Every program of a probe is given that address.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_task_pt_regs},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::debug;
use memscope_common::control::{
    COUNTER_RETURN_NOT_SEEN, COUNTER_THREAD_TABLE_FULL, MAX_THREADS, THREAD_WORDS, ThreadState,
    WalkState,
};

use crate::{
    emit,
    maps::{MOVED_THREADS, NEW_WALK, THREADS, WALKS},
    pages,
    sample::is_unrecorded,
    settings,
};

/// Places that a new thread tries to get.
const PLACES_TRIED: u32 = 8;
/// From one to the next.
const NEXT_PLACE: u32 = 0x9e5;
/// No place.
const NOWHERE: u32 = u32::MAX;

/// What a thread is known by: never 0.
#[inline(always)]
fn identity_of(registers: *const c_void) -> u64 {
    let mut identity = registers;
    // Verifiers make a number of a pointer only where another one is taken from it
    // (`adjust_reg_min_max_vals`); the other one is the same in all programs.
    // SAFETY: it changes nothing but its operand.
    unsafe {
        asm!(
            "{0} -= {1}",
            inout(reg) identity,
            in(reg) settings::place(),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    identity as u64
}

/// Where a thread's state is, if nobody has taken that place before it.
#[inline(always)]
fn first_place(identity: u64) -> u32 {
    (identity.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MAX_THREADS.trailing_zeros())) as u32
}

/// Whose a state is.
#[inline(always)]
fn owner_of(state: *mut ThreadState) -> *mut u64 {
    // SAFETY: a place in an element of an array map, which is never removed.
    unsafe { &raw mut (*state).owner }
}

/// Never inlined, as it is rare.
#[inline(never)]
fn moved_place(identity: u64) -> u32 {
    // SAFETY: a map value, whose only writer is this thread.
    MOVED_THREADS.get_ptr(identity).map_or(NOWHERE, |place| unsafe { *place })
}

/// State of the current thread, if it has any.
#[inline(always)]
pub(crate) fn find(registers: *const c_void) -> Option<*mut ThreadState> {
    state_of(identity_of(registers))
}

#[inline(always)]
fn state_of(identity: u64) -> Option<*mut ThreadState> {
    let first = THREADS.get_ptr_mut(first_place(identity))?;
    // SAFETY: the word is read and written whole.
    if unsafe { read_volatile(owner_of(first)) } == identity {
        return Some(first);
    }
    THREADS.get_ptr_mut(moved_place(identity))
}

/// State of the current thread, made if none was found.
#[inline(always)]
pub(crate) fn known_or_made(
    known: Option<*mut ThreadState>,
    registers: *const c_void,
) -> Option<*mut ThreadState> {
    known.or_else(|| THREADS.get_ptr_mut(make(identity_of(registers))))
}

/// The registers of the program whose thread is in the kernel now.
#[inline(always)]
pub(crate) fn task_registers() -> *const pt_regs {
    // SAFETY: the helpers give the current task and the place of its registers.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs }
}

/// State of that thread, made if there is none.
#[inline(always)]
pub(crate) fn of_task<'a>(registers: *const pt_regs) -> Option<&'a mut ThreadState> {
    let place = registers.cast::<c_void>();
    // SAFETY: this thread's own map value.
    known_or_made(find(place), place).map(|state| unsafe { &mut *state })
}

/// The same, of a thread of which something is to be recorded: without room for it that is lost,
/// and counted.
#[inline(always)]
pub(crate) fn of_recorded_task<'a>(registers: *const pt_regs) -> Option<&'a mut ThreadState> {
    let state = of_task(registers);
    if state.is_none() {
        emit::lose(COUNTER_THREAD_TABLE_FULL);
    }
    state
}

/// Takes a place. It is all zeros, as it was left.
#[inline(never)]
fn make(identity: u64) -> u32 {
    let first = first_place(identity);
    for attempt in 0..PLACES_TRIED {
        let place = first.wrapping_add(attempt * NEXT_PLACE) & (MAX_THREADS - 1);
        let Some(owner) = THREADS.get_ptr_mut(place).map(owner_of) else { break };
        if !claim(owner, identity) {
            continue;
        }
        if attempt != 0 && MOVED_THREADS.insert(identity, place, 0).is_err() {
            // SAFETY: it was just claimed by this thread.
            unsafe { write_volatile(owner, 0) };
            break;
        }
        return place;
    }
    NOWHERE
}

/// Puts a word in place of 0; whether it was 0.
#[inline(always)]
fn claim(owner: *mut u64, identity: u64) -> bool {
    let mut before = 0u64;
    // SAFETY: `owner` points to an aligned u64 of a map value.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({0} + 0, r0, {1})",
            in(reg) owner,
            in(reg) identity,
            inout("r0") before
        );
    }
    before == 0
}

/// What a thread's stack is walked with, made if there is none.
#[inline(always)]
pub(crate) fn walk_state(thread: &ThreadState) -> Option<*mut WalkState> {
    if let Some(state) = WALKS.get_ptr_mut(thread.owner) {
        return Some(state);
    }
    WALKS.insert(thread.owner, NEW_WALK.get(0)?, 0).ok()?;
    WALKS.get_ptr_mut(thread.owner)
}

/// Gives up all that is known of the current thread: it ends, or nothing is left of the image
/// that it ran.
#[inline(always)]
pub(crate) fn forget(context: &BtfTracePointContext) {
    let identity = identity_of(task_registers().cast::<c_void>());
    let Some(state) = state_of(identity) else { return };
    // SAFETY: this thread's own state, here and in the next.
    if unsafe { (*state).cookie } != 0 && !is_unrecorded(unsafe { &*state }) {
        emit::lose(COUNTER_RETURN_NOT_SEEN);
        debug!(context, "thread {} ended inside an allocator call", context.pid());
    }
    // SAFETY: this thread's own state.
    pages::forget(unsafe { &mut *state });
    // These are there for some threads only.
    WALKS.remove(identity).ok();
    MOVED_THREADS.remove(identity).ok();
    // The owner is the first word, and the last to go.
    for word in (0..THREAD_WORDS).rev() {
        // SAFETY: the state has so many words.
        unsafe { write_volatile(state.cast::<u64>().add(word), 0) };
    }
}
