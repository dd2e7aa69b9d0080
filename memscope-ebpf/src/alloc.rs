//! Pairs the entry and the return of allocator functions.

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::debug;
use memscope_common::{
    control::{
        ArgumentIndex, COUNTER_LOST_ALLOCATION, COUNTER_LOST_FREE, COUNTER_LOST_REALLOCATION,
        COUNTER_NESTED, COUNTER_RESULT_UNREADABLE, COUNTER_RETURN_NOT_SEEN,
        COUNTER_THREAD_TABLE_FULL, Cookie, FOLLOW_NEW, FOLLOW_NOTHING, FOLLOW_OLD, NO_ARGUMENT,
        OverflowKey, ThreadState,
    },
    record::{
        Allocation, Free, Header, KIND_ALLOCATION, KIND_FREE, KIND_REALLOCATION_BEGIN,
        KIND_REALLOCATION_END, KIND_SMALL_ALLOCATION, KIND_SMALL_FREE, KIND_SMALL_FREE_INTERNAL,
        KIND_THREAD_NUMBER, MAX_SMALL_AVMA, MAX_THREAD_NUMBER, ReallocationBegin, ReallocationEnd,
        SmallAllocation, ThreadNumber, address_and_thread, kind_and_time,
    },
};
use memscope_ebpf::{Entry, classify_entry, is_internal_call, is_return_of, product_bytes};

use crate::{
    cost, emit,
    hit::{self, Hit},
    maps::{NUMBER_OF_THREADS, NUMBERS, SURROUNDINGS},
    overflow, sample, session,
    stack::{self, CallerRegisters},
    threads,
};

/// Whether a session's program runs at a return.
///
/// Asking the kernel is a call, which is spared where it is plain. Where no probe can lie, nothing is
/// entered. And it is an entry where no call is followed that could return, and the last one that was
/// followed was entered here: should one that is not followed any more return after all, as
/// when a signal's handler has made calls inside it, then to an instruction of its caller, and not
/// to one that is probed: where a probe is, the return address is on top of the stack, which it
/// is not behind a call.
#[inline(always)]
pub(crate) fn is_return(context: &ProbeContext, state: Option<*mut ThreadState>) -> bool {
    let avma = instruction(context);
    if hit::cookie_near(avma) == Some(Cookie(0)) {
        return true;
    }
    if let Some(state) = state {
        // SAFETY: this thread's own map value.
        let (cookie, entry_avma) = unsafe { ((*state).cookie, (*state).entry_avma) };
        if cookie == 0 && entry_avma == avma {
            return false;
        }
    }
    session::is_return(context.as_ptr())
}

/// Where the program runs.
#[inline(always)]
fn instruction(context: &ProbeContext) -> u64 {
    // Volatile, as in `argument`.
    // SAFETY: the context of a uprobe is the thread's registers.
    unsafe { read_volatile(&raw const (*context.regs).rip) }
}

/// Value of an argument; 0 for one that the function does not have.
#[inline(always)]
fn argument(context: &ProbeContext, index: ArgumentIndex) -> u64 {
    let registers = context.regs;
    // Volatile, because LLVM would merge the loads into one at a computed distance from
    // the context, which the verifier refuses ("dereference of modified ctx", 6.18).
    // SAFETY: the context of a uprobe is the thread's registers.
    let values = unsafe {
        [
            read_volatile(&raw const (*registers).rdi),
            read_volatile(&raw const (*registers).rsi),
            read_volatile(&raw const (*registers).rdx),
            read_volatile(&raw const (*registers).rcx),
            read_volatile(&raw const (*registers).r8),
            read_volatile(&raw const (*registers).r9),
        ]
    };
    match index {
        0 => values[0],
        1 => values[1],
        2 => values[2],
        3 => values[3],
        4 => values[4],
        5 => values[5],
        _ => 0,
    }
}

/// The thread's number in small records; 0 if it has none. It is told before its first use.
#[inline(always)]
fn number_of(state: &mut ThreadState, hit: &Hit, time_ns: &mut u64) -> u64 {
    if state.number != 0 && state.numbered_image == u64::from(hit.image) {
        return state.number;
    }
    let number = new_number(state, hit.header(KIND_THREAD_NUMBER, *time_ns));
    // Before the number there can be records in the ring buffer that are later by their clocks.
    // What uses it must be later than all of them, or it would be read first.
    *time_ns = emit::now_ns();
    number
}

/// Never inlined, so that the verifier need not follow it together with each of the paths
/// that lead here.
#[inline(never)]
fn new_number(state: &mut ThreadState, header: Header) -> u64 {
    let thread = bpf_get_current_pid_tgid() as u32;
    state.number = 0;
    let Some(given) = NUMBERS.get_ptr_mut(NUMBER_OF_THREADS) else { return 0 };
    // SAFETY: an element of an array map.
    if unsafe { read_volatile(given) } >= MAX_THREAD_NUMBER - 1 {
        return 0;
    }
    let number = emit::next(given) + 1;
    let record = ThreadNumber { header, number: number as u32, thread };
    if number < MAX_THREAD_NUMBER && emit::send_if_room(record) {
        state.number = number;
        state.numbered_image = u64::from(header.image);
    }
    state.number
}

/// Entry of a function that returns a block, in a target, with the thread's state, if it has any.
/// None if its return is of no interest.
#[inline(always)]
pub(crate) fn entered(
    context: &ProbeContext,
    target: u16,
    known: Option<*mut ThreadState>,
) -> Option<()> {
    let entry_avma = instruction(context);
    let hit = Hit::at_entry(context.as_ptr(), target, entry_avma)?;
    cost::at_entry(hit.cookie, context.regs);
    if !hit.enabled() {
        return None;
    }
    let Some(state) = threads::known_or_made(known, context.as_ptr()) else {
        emit::lose(COUNTER_THREAD_TABLE_FULL);
        debug!(context, "thread table full at thread {}", hit.thread());
        return None;
    };
    // SAFETY: `state` is this thread's own map value; nobody else writes it while
    // the thread is here.
    let state = unsafe { &mut *state };
    // SAFETY: the context of a uprobe is the thread's registers.
    let sp_avma = unsafe { (*context.regs).rsp };
    if is_nested(context, state, &hit, sp_avma) {
        emit::count(COUNTER_NESTED);
        return None;
    }
    state.entry_avma = entry_avma;
    state.target_plus_1 = u64::from(hit.index) + 1;
    let arguments = hit.cookie.arguments();
    let size_bytes = argument(context, arguments.size);
    state.size_bytes = if arguments.count == NO_ARGUMENT {
        size_bytes
    } else {
        product_bytes(size_bytes, argument(context, arguments.count))
    };
    state.block_avma = argument(context, arguments.block);
    state.sp_avma = sp_avma;
    if emit::settings().samples != 0 {
        state.follow = sample::decide(state, hit.index, state.size_bytes, state.block_avma);
        let is_single = hit.has_single_allocator();
        if state.follow == FOLLOW_NOTHING && is_single && hit.cookie.is_leaf() {
            return None;
        }
        if state.follow & FOLLOW_OLD == 0 {
            state.block_avma = 0;
        }
    }
    state.result_slot_avma = argument(context, arguments.result_slot);
    emit::clear(&mut state.tail_probe);
    emit::clear(&mut state.freed_block_avma);
    state.cookie = hit.cookie.0;
    if state.block_avma != 0 {
        let record = ReallocationBegin {
            header: hit.header(KIND_REALLOCATION_BEGIN, emit::now_ns()),
            old_address_avma: state.block_avma,
            thread: hit.thread(),
            padding: 0,
        };
        emit::send(record, COUNTER_LOST_REALLOCATION);
    }
    Some(())
}

/// Return of a function that returns a block. Not asked whether recording is on:
/// a call that was entered while it was on is followed to its end.
#[inline(always)]
pub(crate) fn returned(
    context: &RetProbeContext,
    state: Option<*mut ThreadState>,
    cookie: Cookie,
) -> Option<()> {
    let hit = Hit::of(cookie, hit::target_of(state)?)?;
    cost::at_return(context.regs);
    // SAFETY: as in `entered`.
    let state = unsafe { &mut *state? };
    // SAFETY: as in `entered`.
    let registers = unsafe { &*context.regs };
    if !is_return_of(Cookie(state.cookie), state.sp_avma, hit.cookie, registers.rsp) {
        return None;
    }
    state.cookie = 0;
    let samples = emit::settings().samples != 0;
    if samples && state.follow == FOLLOW_NOTHING {
        return None;
    }
    let address_avma = result_of(state, registers)?;
    if samples && !keep_account(state, hit.index, address_avma) {
        return None;
    }
    let header = hit.header(KIND_ALLOCATION, emit::now_ns());
    if samples && state.follow == FOLLOW_OLD {
        return end_of_drawn(state, &hit, header, address_avma);
    }
    let stack = stack_of(state, registers, header);
    if state.block_avma == 0 {
        send_allocation(state, &hit, header, address_avma, stack);
    } else {
        let record = ReallocationEnd {
            header: Header { kind: KIND_REALLOCATION_END, ..header },
            old_address_avma: state.block_avma,
            new_address_avma: address_avma,
            size_bytes: state.size_bytes,
            interval_bytes: interval_of(state),
            stack,
            thread: hit.thread(),
        };
        if !emit::send(record, COUNTER_LOST_REALLOCATION) {
            count_lost(header, address_avma, state.size_bytes, stack);
        }
    }
    overflow::pause_if_needed(&hit);
    Some(())
}

/// Remembers the blocks that were drawn and live now, before the caller has the new one. False
/// if there is no room, which is counted.
#[inline(always)]
fn keep_account(state: &ThreadState, target: u16, address_avma: u64) -> bool {
    if address_avma != 0 {
        return state.follow & FOLLOW_NEW == 0 || sample::remember(target, address_avma);
    }
    let lives_on = state.follow & FOLLOW_OLD != 0 && state.size_bytes != 0;
    !lives_on || sample::remember(target, state.block_avma)
}

/// Mean distance of samples when the call's block was drawn; 0 if every block is recorded.
#[inline(always)]
fn interval_of(state: &ThreadState) -> u64 {
    if emit::settings().samples == 0 { 0 } else { state.interval_bytes }
}

/// Return of a reallocation of a block that was drawn, whose new block was not: all that is
/// recorded is that the old one has ended, if it has.
#[inline(always)]
fn end_of_drawn(
    state: &mut ThreadState,
    hit: &Hit,
    header: Header,
    address_avma: u64,
) -> Option<()> {
    let has_failed = address_avma == 0 && state.size_bytes != 0;
    let record = ReallocationEnd {
        header: Header { kind: KIND_REALLOCATION_END, ..header },
        old_address_avma: state.block_avma,
        new_address_avma: 0,
        size_bytes: if has_failed { state.size_bytes } else { 0 },
        interval_bytes: 0,
        stack: 0,
        thread: hit.thread(),
    };
    emit::send(record, COUNTER_LOST_REALLOCATION);
    Some(())
}

/// What the call gives; none if that cannot be read, which is counted.
#[inline(always)]
fn result_of(state: &ThreadState, registers: &pt_regs) -> Option<u64> {
    if state.result_slot_avma == 0 {
        return Some(registers.rax);
    }
    if registers.rax as u32 != 0 {
        return Some(0);
    }
    // SAFETY: the helper checks the user address and fails on an unreadable one.
    let result = unsafe { bpf_probe_read_user(state.result_slot_avma as *const u64) };
    if result.is_err() {
        emit::lose(COUNTER_RESULT_UNREADABLE);
    }
    result.ok()
}

/// The number of the stack that the call returns to.
#[inline(always)]
fn stack_of(state: &mut ThreadState, registers: &pt_regs, header: Header) -> u32 {
    // Volatile, as in `argument`.
    // SAFETY: as in `entered`.
    let return_avma = unsafe { read_volatile(&raw const registers.rip) };
    if emit::settings().caller_only != 0 {
        return stack::capture_caller(state, return_avma, header);
    }
    // SAFETY: as above.
    let caller = unsafe {
        CallerRegisters {
            return_avma,
            returns: 1,
            sp_avma: read_volatile(&raw const registers.rsp),
            rbp: read_volatile(&raw const registers.rbp),
            rbx: read_volatile(&raw const registers.rbx),
            r12_to_r15: [
                read_volatile(&raw const registers.r12),
                read_volatile(&raw const registers.r13),
                read_volatile(&raw const registers.r14),
                read_volatile(&raw const registers.r15),
            ],
        }
    };
    stack::capture(state, &caller, header)
}

/// In as few words as it fits in.
#[inline(always)]
fn send_allocation(
    state: &mut ThreadState,
    hit: &Hit,
    mut header: Header,
    address_avma: u64,
    stack: u32,
) {
    state.allocated_block_avma = address_avma;
    let interval_bytes = interval_of(state);
    let number = number_of(state, hit, &mut header.time_ns);
    let is_small = number != 0
        && interval_bytes == 0
        && address_avma < MAX_SMALL_AVMA
        && state.size_bytes < SmallAllocation::MAX_SIZE_BYTES
        && header.probe < SmallAllocation::MAX_PROBE;
    if is_small {
        let words = [
            kind_and_time(KIND_SMALL_ALLOCATION, header.time_ns),
            address_and_thread(address_avma, number),
            SmallAllocation::pack(stack, state.size_bytes, header.probe),
        ];
        if !emit::send_small(words, COUNTER_LOST_ALLOCATION) {
            count_lost(header, address_avma, state.size_bytes, stack);
        }
        return;
    }
    let record = Allocation {
        header,
        address_avma,
        size_bytes: state.size_bytes,
        interval_bytes,
        stack,
        thread: hit.thread(),
    };
    if !emit::send(record, COUNTER_LOST_ALLOCATION) {
        count_lost(header, address_avma, state.size_bytes, stack);
    }
}

/// The sums of a lost allocation's stack stay exact. Where blocks are sampled, what is lost is
/// a sample, and all calls are counted anyhow.
#[inline(always)]
fn count_lost(header: Header, address_avma: u64, size_bytes: u64, stack: u32) {
    if address_avma != 0 && emit::settings().samples == 0 {
        let key = OverflowKey { target: header.target, image: header.image, stack };
        overflow::count(key, size_bytes);
    }
}

/// Whether a hit is inside another call that was seen to begin and has not returned.
/// If that call was abandoned instead, its loss is counted and it is forgotten.
#[inline(always)]
fn is_nested(context: &ProbeContext, state: &mut ThreadState, hit: &Hit, sp_avma: u64) -> bool {
    let outer = Cookie(state.cookie);
    match classify_entry(outer, state.sp_avma, state.tail_probe, hit.cookie, sp_avma) {
        Entry::Nested => true,
        Entry::TailCall => {
            state.tail_probe = u64::from(hit.cookie.probe());
            true
        }
        Entry::OutermostAfterLostReturn if sample::is_unrecorded(state) => {
            state.cookie = 0;
            false
        }
        Entry::OutermostAfterLostReturn => {
            emit::lose(COUNTER_RETURN_NOT_SEEN);
            let (thread, probe) = (hit.thread(), outer.probe());
            debug!(context, "thread {} never returned from probe {}", thread, probe);
            state.cookie = 0;
            false
        }
        Entry::Outermost => false,
    }
}

/// Entry of a function that ends a block. The record is made here, before the
/// block can be handed to another thread.
#[inline(always)]
pub(crate) fn freed(context: &ProbeContext) -> Option<()> {
    let known = threads::find(context.as_ptr());
    let hit = Hit::at_entry(context.as_ptr(), hit::target_of(known)?, instruction(context))?;
    cost::at_entry(hit.cookie, context.regs);
    if !hit.enabled() {
        return None;
    }
    let address_avma = argument(context, hit.cookie.arguments().block);
    if address_avma == 0 {
        return None;
    }
    if emit::settings().samples != 0 && !sample::forget(hit.index, address_avma) {
        sample::drop_free();
        return None;
    }
    // SAFETY: as in `entered`.
    let registers = unsafe { &*context.regs };
    let mut time_ns = emit::now_ns();
    let (mut number, mut is_known) = (0, false);
    // Without a state, for want of room, there is no outer call to be nested in.
    if let Some(state) = threads::known_or_made(known, context.as_ptr()) {
        // SAFETY: as in `entered`.
        let state = unsafe { &mut *state };
        // A free can hand its block on to another module's free. Its end is not probed,
        // which would cost as much again; so it is told by the block.
        let handed_on = state.freed_block_avma == address_avma
            && state.freed_probe != u64::from(hit.cookie.probe());
        if is_nested(context, state, &hit, registers.rsp) || handed_on {
            emit::count(COUNTER_NESTED);
            return None;
        }
        state.target_plus_1 = u64::from(hit.index) + 1;
        state.freed_block_avma = address_avma;
        state.freed_probe = u64::from(hit.cookie.probe());
        is_known = state.allocated_block_avma == address_avma;
        state.allocated_block_avma = 0;
        number = number_of(state, &hit, &mut time_ns);
    }
    // Who frees matters only for blocks that nobody knows, and this thread has just got it.
    let is_internal = !is_known && is_called_by_module(&hit, registers.rip, registers.rsp);
    if number != 0 && address_avma < MAX_SMALL_AVMA {
        let kind = if is_internal { KIND_SMALL_FREE_INTERNAL } else { KIND_SMALL_FREE };
        let words = [kind_and_time(kind, time_ns), address_and_thread(address_avma, number), 0];
        emit::send_small(words, COUNTER_LOST_FREE);
    } else {
        let record = Free {
            header: hit.header(KIND_FREE, time_ns),
            address_avma,
            thread: hit.thread(),
            is_internal: is_internal.into(),
        };
        emit::send(record, COUNTER_LOST_FREE);
    }
    overflow::pause_if_needed(&hit);
    Some(())
}

/// Whether the probed function was called by code of its own module.
#[inline(always)]
fn is_called_by_module(hit: &Hit, probe_avma: u64, sp_avma: u64) -> bool {
    // SAFETY: the helper checks the user address and fails on an unreadable one.
    let return_avma = unsafe { bpf_probe_read_user(sp_avma as *const u64) }.unwrap_or(0);
    SURROUNDINGS
        .get(u32::from(hit.cookie.probe()))
        .is_some_and(|surroundings| is_internal_call(surroundings, probe_avma, return_avma))
}
