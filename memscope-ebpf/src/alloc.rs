//! Pairs the entry and the return of allocator functions.

use core::ptr::{self, read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::debug;
use memscope_common::{
    control::{
        COUNTER_HIT_TWICE, COUNTER_LOST_ALLOCATION, COUNTER_LOST_FREE, COUNTER_LOST_PROCESS,
        COUNTER_LOST_REALLOCATION, COUNTER_NESTED, COUNTER_PASSED_BY, COUNTER_RESULT_UNREADABLE,
        COUNTER_RETURN_NOT_SEEN, COUNTER_THREAD_TABLE_FULL, Cookie, FOLLOW_NEW, FOLLOW_NOTHING,
        FOLLOW_OLD, NO_ARGUMENT, OverflowKey, ThreadState, allocator_call_bit,
    },
    record::{
        Allocation, AllocatorCall, Free, Header, KIND_ALLOCATION, KIND_ALLOCATOR_CALL, KIND_FREE,
        KIND_REALLOCATION_BEGIN, KIND_REALLOCATION_END, KIND_SMALL_ALLOCATION, KIND_SMALL_FREE,
        KIND_SMALL_FREE_INTERNAL, KIND_THREAD_NUMBER, MAX_SMALL_AVMA, MAX_THREAD_NUMBER,
        ReallocationBegin, ReallocationEnd, SMALL_FREE_ALLOCATED_SINCE, STACK_BEGINS_IN_PROBE,
        STACK_BEGINS_INSIDE, SmallAllocation, ThreadNumber, address_and_thread, kind_and_time,
    },
};
use memscope_ebpf::{
    Entry, FreeCall, InnerHit, classify_entry, condition_holds, inner_hit, is_caught_outside,
    is_exit_of, is_internal_call, is_return_of, product_bytes,
};

use crate::{
    cost, emit,
    hit::{self, Hit, Spot},
    maps::{ALLOCATOR_CALLS, NUMBER_OF_THREADS, NUMBERS, SURROUNDINGS},
    overflow,
    registers::{argument, block_in_register},
    sample, session, settings,
    stack::{self, CallerRegisters, return_address},
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
pub(crate) fn is_return(
    context: &ProbeContext,
    state: Option<*mut ThreadState>,
    spot: &Spot,
) -> bool {
    if spot.cookie == Some(Cookie(0)) {
        return true;
    }
    if let Some(state) = state {
        // SAFETY: this thread's own map value.
        let (cookie, entry_avma) = unsafe { ((*state).cookie, (*state).entry_avma) };
        if cookie == 0 && entry_avma == spot.avma {
            return false;
        }
    }
    session::is_return(context.as_ptr())
}

/// Where the program runs.
#[inline(always)]
pub(crate) fn spot_of(context: &ProbeContext) -> Spot {
    // Volatile, as in `later_argument`.
    // SAFETY: the context of a uprobe is the thread's registers.
    Spot::at(unsafe { read_volatile(&raw const (*context.regs).rip) })
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

/// Entry of a function that returns a block, in a target, with the thread's state, if it has any. The thread's state then; none
/// if no more of the call is of interest.
#[inline(always)]
pub(crate) fn entered<const CAN_THROW: bool>(
    context: &ProbeContext,
    target: u16,
    known: Option<*mut ThreadState>,
    spot: &Spot,
) -> Option<*mut ThreadState> {
    let hit = Hit::at_entry(context.as_ptr(), target, spot)?;
    cost::at_entry(hit.cookie, context.regs);
    if !CAN_THROW && is_passed_by(context, hit.cookie) {
        return None;
    }
    // SAFETY: the context of a uprobe is the thread's registers.
    let sp_avma = unsafe { (*context.regs).rsp }.wrapping_add(hit.cookie.depth_bytes());
    if !CAN_THROW && hit.cookie.was_noted() {
        return noted(known?, &hit, sp_avma);
    }
    if !hit.modes().0 {
        return None;
    }
    if !CAN_THROW && hit.cookie.is_inner() && !is_told_inside(context, &hit, spot, sp_avma) {
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
    let place = place_of(context, state, &hit, sp_avma);
    if !matches!(place, Place::Outermost) {
        return entered_inside::<CAN_THROW>(state, &hit, &place, spot.avma);
    }
    state.entry_avma = spot.avma;
    note_arguments(context, state, &hit, sp_avma);
    let mut allocated_since = 0;
    if settings::samples() != 0 {
        allocated_since = state.allocated_since;
        state.follow = sample::decide(state, hit.index, state.size_bytes, state.block_avma);
        let is_single = hit.modes().1;
        if state.follow == FOLLOW_NOTHING && is_single && hit.cookie.is_leaf() {
            return None;
        }
        if state.follow & FOLLOW_OLD == 0 {
            state.block_avma = 0;
        }
    }
    emit::clear(&mut state.tail_probe);
    emit::clear(&mut state.freed_block_avma);
    emit::clear(&mut state.return_avma);
    state.cookie = hit.cookie.0;
    if state.block_avma != 0 {
        let record = ReallocationBegin {
            header: hit.header(KIND_REALLOCATION_BEGIN, emit::now_ns()),
            old_address_avma: state.block_avma,
            thread: hit.thread(),
            allocated_since,
        };
        emit::send(record, COUNTER_LOST_REALLOCATION);
    }
    if CAN_THROW {
        note_caller(context, state, &hit);
    }
    Some(ptr::from_mut(state))
}

/// Entry of a function inside the call under way, which is told in the inner one's place if an exception could have left it.
#[inline(always)]
fn entered_inside<const CAN_THROW: bool>(
    state: &mut ThreadState,
    hit: &Hit,
    place: &Place,
    entry_avma: u64,
) -> Option<*mut ThreadState> {
    emit::count(COUNTER_NESTED);
    note_allocators(Cookie(state.cookie), hit);
    if CAN_THROW || !matches!(place, Place::TailCall) || !Cookie(state.cookie).can_throw() {
        return None;
    }
    // The call goes on as one whose return is probed, which changes its return address.
    state.entry_avma = entry_avma;
    state.cookie = hit.cookie.0;
    emit::clear(&mut state.return_avma);
    Some(ptr::from_mut(state))
}

/// Where a call's block is known that was noted before. None if it was not, as in a call inside another one, or if recording has
/// ended since, as at a return.
#[inline(always)]
fn noted(state: *mut ThreadState, hit: &Hit, sp_avma: u64) -> Option<*mut ThreadState> {
    // SAFETY: as in `entered`.
    let known = unsafe { &mut *state };
    if !Cookie(known.cookie).notes() || known.sp_avma != sp_avma {
        return None;
    }
    if !hit.modes().0 {
        known.cookie = 0;
        return None;
    }
    known.cookie = hit.cookie.0;
    Some(state)
}

/// The cookie of the call under way; 0 if there is none.
#[inline(always)]
pub(crate) fn entered_cookie(state: Option<*mut ThreadState>) -> Cookie {
    // SAFETY: this thread's own map value.
    Cookie(state.map_or(0, |state| unsafe { (*state).cookie }))
}

/// Whether a call that could be given its block here goes another way, where it is hit again.
#[inline(always)]
fn is_passed_by(context: &ProbeContext, cookie: Cookie) -> bool {
    let Some(condition) = cookie.condition() else { return false };
    // Volatile, as in `later_argument`.
    // SAFETY: the context of a uprobe is the thread's registers.
    let flags = unsafe { read_volatile(&raw const (*context.regs).eflags) };
    let is_passed_by = !condition_holds(condition, flags);
    if is_passed_by {
        emit::count(COUNTER_PASSED_BY);
    }
    is_passed_by
}

/// Whether a call is to be told inside of a function that the one of interest calls. `sp_avma` is where that one's return address
/// lies.
#[inline(always)]
fn is_told_inside(context: &ProbeContext, hit: &Hit, spot: &Spot, sp_avma: u64) -> bool {
    let fails = block_in_register(context.regs, hit.cookie.register()) == 0;
    told_inside(hit.cookie.probe().into(), u32::from(fails), spot.avma, sp_avma) != 0
}

/// The same. A function with a name of its own, which the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn told_inside(probe: u32, fails: u32, probe_avma: u64, sp_avma: u64) -> u32 {
    let Some(surroundings) = SURROUNDINGS.get(probe) else { return 0 };
    let inner_sp_avma = sp_avma.wrapping_sub(surroundings.inner.depth_bytes.into());
    let return_avma = return_address(inner_sp_avma);
    match inner_hit(surroundings, probe_avma, return_avma, fails != 0) {
        InnerHit::Told => return 1,
        InnerHit::PassedBy => emit::count(COUNTER_PASSED_BY),
        InnerHit::Unknown => emit::lose(COUNTER_RETURN_NOT_SEEN),
    }
    0
}

/// Notes what a call is given.
#[inline(always)]
fn note_arguments(context: &ProbeContext, state: &mut ThreadState, hit: &Hit, sp_avma: u64) {
    state.target_plus_1 = u64::from(hit.index) + 1;
    let arguments = hit.cookie.arguments();
    let size_bytes = argument(context, arguments.size);
    state.size_bytes = if arguments.count == NO_ARGUMENT {
        size_bytes
    } else {
        product_bytes(size_bytes, argument(context, arguments.count))
    };
    state.block_avma = argument(context, arguments.block);
    state.result_slot_avma = argument(context, arguments.result_slot);
    state.sp_avma = sp_avma;
}

/// Notes who calls a function that can throw. Its end tells no more: where it returns is inside
/// itself, and an exception goes anywhere.
#[inline(always)]
fn note_caller(context: &ProbeContext, state: &mut ThreadState, hit: &Hit) {
    state.return_avma = return_address(state.sp_avma);
    // Read again: verifiers would follow the walk with the 0 of one that cannot be read as well.
    // SAFETY: this thread's own map value.
    let return_avma = unsafe { read_volatile(&raw const state.return_avma) };
    if sample::is_unrecorded(state) {
        emit::clear(&mut state.stack);
        return;
    }
    // SAFETY: as in `entered`.
    let registers = unsafe { &*context.regs };
    let header = hit.header(KIND_ALLOCATION, emit::now_ns());
    let sp_avma = state.sp_avma.wrapping_add(8);
    // SAFETY: the context of a uprobe.
    let caller = unsafe { CallerRegisters::with_saved(registers, return_avma, 1, sp_avma) };
    state.stack = u64::from(stack_of(state, &caller, header, hit.removals));
}

/// An instruction by which a function returns that can throw.
#[inline(always)]
pub(crate) fn exited(context: &ProbeContext) -> Option<()> {
    let state = threads::find(context.as_ptr());
    // SAFETY: the helper reads the cookie of the link that called this program.
    cost::at_entry(Cookie(unsafe { bpf_get_attach_cookie(context.as_ptr()) }), context.regs);
    // SAFETY: as in `entered`.
    let state = unsafe { &mut *state? };
    // SAFETY: as in `entered`.
    let registers = unsafe { &*context.regs };
    let cookie = Cookie(state.cookie);
    if !is_exit_of(cookie, state.sp_avma, registers.rsp) {
        return None;
    }
    let hit = Hit::of(cookie, hit::target_of(Some(state))?)?;
    state.cookie = 0;
    if sample::is_unrecorded(state) {
        return None;
    }
    let address_avma = result_of(state, registers)?;
    end_known(state, &hit, address_avma)
}

/// An exception is made, in the call under way if there is one that it can leave. What it makes
/// is a block of its own, which outlives the call.
#[inline(always)]
pub(crate) fn thrown(context: &ProbeContext) -> Option<()> {
    // SAFETY: as in `entered`.
    let state = unsafe { &mut *threads::find(context.as_ptr())? };
    if Cookie(state.cookie).can_throw() {
        left_by_exception(state);
    }
    Some(())
}

/// An exception is caught.
#[inline(always)]
pub(crate) fn caught(context: &ProbeContext) -> Option<()> {
    // SAFETY: as in `entered`.
    let state = unsafe { &mut *threads::find(context.as_ptr())? };
    // SAFETY: as in `entered`.
    let sp_avma = unsafe { (*context.regs).rsp };
    if is_caught_outside(Cookie(state.cookie), state.sp_avma, sp_avma) {
        left_by_exception(state);
    }
    Some(())
}

/// An exception has left the call under way: it has given no block. Never inlined, so that
/// the verifier need not follow it with each of the paths that lead here.
#[inline(never)]
fn left_by_exception(state: &mut ThreadState) -> u32 {
    let cookie = Cookie(state.cookie);
    state.cookie = 0;
    if sample::is_unrecorded(state) {
        return 0;
    }
    let Some(target) = hit::target_of(Some(state)) else { return 0 };
    let Some(hit) = Hit::of(cookie, target) else { return 0 };
    // A failed call with a size of 0 would be none.
    state.size_bytes = state.size_bytes.max(1);
    end_known(state, &hit, 0).map_or(0, |()| 1)
}

/// End of a call whose caller was noted as it began.
#[inline(always)]
fn end_known(state: &mut ThreadState, hit: &Hit, address_avma: u64) -> Option<()> {
    let header = to_be_recorded(state, hit, address_avma)?;
    emit::count(COUNTER_HIT_TWICE);
    let stack = state.stack as u32;
    record(state, hit, header, address_avma, stack)
}

/// The block of a call is known: at its return, or, if it `gives_at_once`, right after [`entered`]. Nothing
/// that ends a block is between such a place and the return, and who has its address now has got it from nobody else.
#[inline(always)]
pub(crate) fn returned(
    context: &RetProbeContext,
    state: Option<*mut ThreadState>,
    cookie: Cookie,
    gives_at_once: bool,
) -> Option<()> {
    // SAFETY: as in `entered`. Of a process that is not traced no thread has any.
    let state = unsafe { &mut *state? };
    let hit = Hit::of(cookie, hit::target_of(Some(state))?)?;
    // SAFETY: as in `entered`.
    let registers = unsafe { &*context.regs };
    if !gives_at_once {
        cost::at_return(context.regs);
        if !is_return_of(Cookie(state.cookie), state.sp_avma, hit.cookie, registers.rsp) {
            return None;
        }
    }
    state.cookie = 0;
    if sample::is_unrecorded(state) || !gives_at_once && has_ended(state, &hit) {
        return None;
    }
    let address_avma = if gives_at_once {
        block_in_register(context.regs, hit.cookie.register())
    } else {
        result_of(state, registers)?
    };
    let header = to_be_recorded(state, &hit, address_avma)?;
    // SAFETY: as in `entered`.
    let mut caller = unsafe { CallerRegisters::of_task(context.regs, !gives_at_once) };
    if !gives_at_once || hit.cookie.was_noted() {
        emit::count(COUNTER_HIT_TWICE);
    }
    if gives_at_once {
        caller.in_probe = hit.cookie.probe();
        let inside = u16::from(hit.cookie.is_inner()) * STACK_BEGINS_INSIDE;
        caller.begins = STACK_BEGINS_IN_PROBE | inside;
    }
    let stack = stack_of(state, &caller, header, hit.removals);
    record(state, &hit, header, address_avma, stack)
}

/// Whether recording has ended since a call was entered that gives a new block. Then its block is not recorded either: the one
/// that was at its address may have ended in between. Of reallocations the begin was recorded.
#[inline(always)]
fn has_ended(state: &ThreadState, hit: &Hit) -> bool {
    state.block_avma == 0 && !hit.modes().0
}

/// Whether what a call has given, 0 if nothing, is to be recorded with its stack; then the
/// record's header.
#[inline(always)]
fn to_be_recorded(state: &mut ThreadState, hit: &Hit, address_avma: u64) -> Option<Header> {
    let samples = settings::samples() != 0;
    if samples && !keep_account(state, hit.index, address_avma) {
        return None;
    }
    let header = hit.header(KIND_ALLOCATION, emit::now_ns());
    if samples && state.follow == FOLLOW_OLD {
        end_of_drawn(state, hit, header, address_avma);
        return None;
    }
    Some(header)
}

/// Records what a call has given.
#[inline(always)]
fn record(
    state: &mut ThreadState,
    hit: &Hit,
    header: Header,
    address_avma: u64,
    stack: u32,
) -> Option<()> {
    if state.block_avma == 0 {
        send_allocation(state, hit, header, address_avma, stack);
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
    overflow::pause_if_needed(hit);
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
    if settings::samples() == 0 { 0 } else { state.interval_bytes }
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

/// The number of the stack of a call.
#[inline(always)]
fn stack_of(
    state: &mut ThreadState,
    caller: &CallerRegisters,
    header: Header,
    removals: u32,
) -> u32 {
    if settings::caller_only() == 0 {
        return stack::capture(state, caller, header, removals);
    }
    let is_known = caller.in_probe == 0;
    let return_avma = if is_known { caller.return_avma } else { return_address(state.sp_avma) };
    stack::capture_caller(state, return_avma, header, removals)
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
    if address_avma != 0 && settings::samples() == 0 {
        let key = OverflowKey { target: header.target, image: header.image, stack };
        overflow::count(key, size_bytes);
    }
}

/// Where a hit is.
enum Place {
    Outermost,
    /// Inside another call that was seen to begin and has not returned.
    Nested,
    /// The same, by a jump in place of a call.
    TailCall,
}

/// Where a hit is. If the call under way was abandoned, that is recorded or its loss counted, and it is
/// forgotten.
#[inline(always)]
fn place_of(context: &ProbeContext, state: &mut ThreadState, hit: &Hit, sp_avma: u64) -> Place {
    let outer = Cookie(state.cookie);
    let is_left = is_left(state);
    let entry =
        classify_entry(outer, state.sp_avma, state.tail_probe, hit.cookie, sp_avma, is_left);
    match entry {
        Entry::Nested => return Place::Nested,
        Entry::TailCall => {
            state.tail_probe = u64::from(hit.cookie.probe());
            return Place::TailCall;
        }
        Entry::OutermostAfterException => {
            left_by_exception(state);
        }
        Entry::OutermostAfterLostReturn if sample::is_unrecorded(state) => state.cookie = 0,
        Entry::OutermostAfterLostReturn => {
            emit::lose(COUNTER_RETURN_NOT_SEEN);
            let (thread, probe) = (hit.thread(), outer.probe());
            debug!(context, "thread {} never returned from probe {}", thread, probe);
            state.cookie = 0;
        }
        Entry::Outermost => {}
    }
    Place::Outermost
}

/// Whether the return address of the call under way is gone, if that is known.
#[inline(always)]
fn is_left(state: &ThreadState) -> bool {
    if state.cookie == 0 || state.return_avma == 0 {
        return false;
    }
    // SAFETY: the helper checks the user address and fails on an unreadable one.
    let word = unsafe { bpf_probe_read_user(state.sp_avma as *const u64) };
    word.is_ok_and(|word| word != state.return_avma)
}

/// Entry of a function that ends a block. The record is made here, before the
/// block can be handed to another thread.
#[inline(always)]
pub(crate) fn freed(context: &ProbeContext) -> Option<()> {
    let known = threads::find(context.as_ptr());
    let hit = Hit::at_entry(context.as_ptr(), hit::target_of(known)?, &spot_of(context))?;
    cost::at_entry(hit.cookie, context.regs);
    let (is_enabled, has_single_allocator) = hit.modes();
    if !is_enabled {
        return None;
    }
    let address_avma = argument(context, hit.cookie.arguments().block);
    if address_avma == 0 {
        return None;
    }
    if settings::samples() == 0 {
        emit::foresee_small();
    } else if !sample::forget(hit.index, address_avma) {
        sample::drop_free();
        return None;
    }
    // SAFETY: as in `entered`.
    let registers = unsafe { &*context.regs };
    // Where the return address lies.
    let sp_avma = registers.rsp.wrapping_add(hit.cookie.depth_bytes());
    let mut time_ns = emit::now_ns();
    let (mut number, mut allocated_since) = (0, 0);
    let mut may_be_freed_again = true;
    // Without a state, for want of room, there is no outer call to be nested in.
    if let Some(state) = threads::known_or_made(known, context.as_ptr()) {
        // SAFETY: as in `entered`.
        let state = unsafe { &mut *state };
        let is_nested = !matches!(place_of(context, state, &hit, sp_avma), Place::Outermost);
        let may_hand_on = !(hit.cookie.is_leaf() && has_single_allocator);
        if is_nested || is_handed_on(state, &hit, may_hand_on, address_avma, sp_avma) {
            emit::count(COUNTER_NESTED);
            let outer = if is_nested { state.cookie } else { state.freed_cookie };
            note_allocators(Cookie(outer), &hit);
            return None;
        }
        state.target_plus_1 = u64::from(hit.index) + 1;
        // Not what this thread has just got, and only where the C library can be at it.
        may_be_freed_again = state.allocated_block_avma != address_avma
            && (state.ends != 0 || hit.cookie.frees_again_unnoticed());
        state.allocated_block_avma = 0;
        allocated_since = u64::from(state.allocated_since);
        number = number_of(state, &hit, &mut time_ns);
    }
    // To ask costs as much as all the rest.
    let is_internal = may_be_freed_again && is_called_by_module(&hit, registers.rip, sp_avma);
    if number != 0 && address_avma < MAX_SMALL_AVMA {
        let kind = if is_internal { KIND_SMALL_FREE_INTERNAL } else { KIND_SMALL_FREE };
        let probe = u64::from(hit.cookie.probe());
        // Its only bit is the one above those of the probe.
        let probe_and_flags = probe | allocated_since * SMALL_FREE_ALLOCATED_SINCE;
        let address_and_thread = address_and_thread(address_avma, number);
        let words = [kind_and_time(kind, time_ns), address_and_thread, probe_and_flags];
        emit::send_small(words, COUNTER_LOST_FREE);
    } else {
        let record = Free {
            header: hit.header(KIND_FREE, time_ns),
            address_avma,
            thread: hit.thread(),
            is_internal: is_internal.into(),
            allocated_since: allocated_since as u16,
        };
        emit::send(record, COUNTER_LOST_FREE);
    }
    overflow::pause_if_needed(&hit);
    Some(())
}

/// The thread ends: what it frees from now on, it may have freed already.
#[inline(always)]
pub(crate) fn thread_ends(context: &ProbeContext) -> Option<()> {
    let known = threads::find(context.as_ptr());
    let target = hit::target_of(known)?;
    // SAFETY: as in `entered`.
    let state = unsafe { &mut *threads::known_or_made(known, context.as_ptr())? };
    state.target_plus_1 = u64::from(target) + 1;
    state.ends = 1;
    Some(())
}

/// Whether a free is part of the one before, which has handed its block on. Its end is not probed,
/// which would cost as much again; so it is told by the block and by the stack. Else it is noted, if
/// it can hand its block on itself.
#[inline(always)]
fn is_handed_on(
    state: &mut ThreadState,
    hit: &Hit,
    may_hand_on: bool,
    block_avma: u64,
    sp_avma: u64,
) -> bool {
    if !may_hand_on && state.freed_block_avma != block_avma {
        emit::clear(&mut state.freed_block_avma);
        return false;
    }
    let cookie = hit.cookie;
    let call = FreeCall { block_avma, cookie, sp_avma, return_avma: return_address(sp_avma) };
    let before = FreeCall {
        block_avma: state.freed_block_avma,
        cookie: Cookie(state.freed_cookie),
        sp_avma: state.freed_sp_avma,
        return_avma: state.freed_return_avma,
    };
    if call.is_part_of(&before) {
        return true;
    }
    state.freed_block_avma = block_avma;
    state.freed_cookie = call.cookie.0;
    state.freed_sp_avma = call.sp_avma;
    state.freed_return_avma = call.return_avma;
    false
}

/// Notes whose function runs inside whose: what the outer one gives can be the other's.
#[inline(always)]
fn note_allocators(outer: Cookie, hit: &Hit) {
    let (outer, inner) = (outer.allocator(), hit.cookie.allocator());
    if outer != inner {
        tell_allocators(outer, inner, hit.header(KIND_ALLOCATOR_CALL, 0));
    }
}

/// Tells it, if it was not told before. Never inlined, as it is rare: so the verifier need not follow it
/// with each of the paths that lead here.
#[inline(never)]
fn tell_allocators(outer: u8, inner: u8, header: Header) -> u32 {
    let (index, bit) = allocator_call_bit(outer, inner);
    let Some(word) = ALLOCATOR_CALLS.get_ptr_mut(index) else { return 0 };
    // SAFETY: an element of an array map, whose words are read and written whole.
    let known = unsafe { read_volatile(word) };
    if known & bit != 0 {
        return 0;
    }
    let record = AllocatorCall {
        header: Header { time_ns: emit::now_ns(), ..header },
        outer: outer.into(),
        inner: inner.into(),
        padding: 0,
    };
    if !emit::send(record, COUNTER_LOST_PROCESS) {
        return 0;
    }
    // Should another CPU write the word now, one of both is told once more.
    // SAFETY: as above.
    unsafe { write_volatile(word, known | bit) };
    1
}

/// Whether the probed function was called by code of its own module.
#[inline(always)]
fn is_called_by_module(hit: &Hit, probe_avma: u64, sp_avma: u64) -> bool {
    let return_avma = return_address(sp_avma);
    SURROUNDINGS
        .get(u32::from(hit.cookie.probe()))
        .is_some_and(|surroundings| is_internal_call(surroundings, probe_avma, return_avma))
}
